"""A web server of the test's own on loopback, which answers what a path asks of it: good files, and every mischief."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """`files` are served by name; `answers` maps a name to what is done instead, given the handler."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.closing = threading.Event()
        self.url = ""

    def status(self, name: str, *codes: int, then: bytes | None = None, then_once: bytes = b"", **headers: str) -> None:
        """Answer `name` with these codes, one after the other; then with the file `then`, or the last code for ever.

        A 200 among them carries `then_once`.
        """
        left = list(codes)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            is_last = len(left) == 1 and then is None
            code = left[0] if is_last else left.pop(0) if left else 0
            body = then_once if code == 200 else b"" if code else then or b""
            handler.send_response(code or 200)
            for key, value in headers.items():
                handler.send_header(key.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[name] = answer

    def cut(self, name: str, data: bytes) -> None:
        """Promise a whole file and send half of it, every time."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.close_connection = True

        self.answers[name] = answer

    def hang(self, name: str) -> None:
        """Accept, and never answer."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            self.closing.wait(120)

        self.answers[name] = answer


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.lstrip("/").split("?")[0]
            web.asked[name] += 1
            if name in web.answers:
                web.answers[name](self)
                return
            data = web.files.get(name)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        server.server_close()


def refusing_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def wait_for(reached: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
