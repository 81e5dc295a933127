"""The metadata services of AWS and GCE on loopback, as their documents describe them: the cloud cannot be had here."""

import json
import threading
import uuid
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class MetadataService:
    """Both services on one port. `take_away` is the cloud's decision; `requests` is what was asked for, in order."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.ends: datetime | None = None
        self.requests: list[str] = []
        self.unwell = 0
        """Answers of 503 that are still to come."""
        self._changed = threading.Condition()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service._answer(self)

            def do_PUT(self) -> None:
                service._answer(self)

            def log_message(self, format: str, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Where the clouds' own tools look for another address than the usual one."""
        host = f"127.0.0.1:{self._server.server_port}"
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{host}", "GCE_METADATA_HOST": host}

    def take_away(self, seconds: float) -> None:
        """Give notice of an end in `seconds`."""
        with self._changed:
            self.ends = datetime.now(UTC) + timedelta(seconds=seconds)
            self._changed.notify_all()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, asked: BaseHTTPRequestHandler) -> None:
        url = urlsplit(asked.path)
        self.requests.append(f"{asked.command} {url.path}")
        if self._is_unwell():
            return _send(asked, 503)
        if asked.command == "PUT" and url.path == "/latest/api/token":
            return self._new_token(asked)
        if url.path == "/latest/meta-data/spot/instance-action":
            return self._aws(asked)
        if url.path == "/computeMetadata/v1/instance/preempted":
            return self._gce(asked, {name: value for name, (value,) in parse_qs(url.query).items()})
        return _send(asked, 404)

    def _new_token(self, asked: BaseHTTPRequestHandler) -> None:
        if not 1 <= int(asked.headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600:
            return _send(asked, 400)
        self.tokens.add(token := uuid.uuid4().hex)
        return _send(asked, 200, token)

    def _aws(self, asked: BaseHTTPRequestHandler) -> None:
        if asked.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return _send(asked, 401)
        if self.ends is None:
            return _send(asked, 404)
        return _send(asked, 200, json.dumps({"action": "terminate", "time": f"{self.ends:%Y-%m-%dT%H:%M:%SZ}"}))

    def _gce(self, asked: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        if asked.headers.get("Metadata-Flavor") != "Google":
            return _send(asked, 403)
        with self._changed:
            if query.get("wait_for_change") == "true" and query.get("last_etag") == self._etag:
                self._changed.wait(float(query["timeout_sec"]))
                if self._is_unwell():
                    return _send(asked, 503)
            return _send(asked, 200, "FALSE" if self.ends is None else "TRUE", self._etag)

    def _is_unwell(self) -> bool:
        self.unwell -= (unwell := self.unwell > 0)
        return unwell

    @property
    def _etag(self) -> str:
        return "a1" if self.ends is None else "b2"


def _send(asked: BaseHTTPRequestHandler, status: int, body: str = "", etag: str = "") -> None:
    asked.send_response(status)
    asked.send_header("Content-Length", str(len(body)))
    if etag:
        asked.send_header("ETag", etag)
    asked.end_headers()
    asked.wfile.write(body.encode())
