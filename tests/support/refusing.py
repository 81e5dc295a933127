"""A proxy of the test's own in front of an S3 server: it passes on everything that no rule refuses."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REFUSAL = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{said}</Message></Error>"
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Refusing:
    """`rule` gets a request's method and path and names the error that it meets, or None; `refused` lists those."""

    def __init__(self, server: str) -> None:
        self.server, self.url = urlsplit(server), ""
        self.rule: Callable[[str, str], str | None] = lambda method, path: None
        self.refused: list[tuple[str, str]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        method, path = handler.command, unquote(handler.path.partition("?")[0])
        if code := self.rule(method, path):
            self.refused.append((method, path))
            return send(handler, 403, {}, REFUSAL.format(code=code, said="as the test wants it").encode())
        server = http.client.HTTPConnection(self.server.netloc, timeout=60)
        try:
            server.request(method, handler.path, body, dict(handler.headers))
            reply = server.getresponse()
            headers = {key: value for key, value in reply.getheaders() if key.lower() not in HOP}
            # The answer to a HEAD tells the length of a body that it does not send.
            length = reply.getheader("Content-Length") if method == "HEAD" else None
            send(handler, reply.status, headers, reply.read(), length)
        finally:
            server.close()


def send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, length: str | None = None
) -> None:
    handler.send_response_only(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", length or str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def refusing(server: str) -> Iterator[Refusing]:
    """A proxy on loopback in front of the server at this URL."""
    proxy = Refusing(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            proxy.answer(self)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{listener.server_address[1]}"
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
