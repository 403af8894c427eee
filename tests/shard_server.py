"""A web server of a folder that serves ranges, and fails in the ways that servers do when it is told to."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class ShardServer:
    """What the server does; may be changed while it runs.

    Attributes:
        folder: What is served.
        url: Where.
        has_ranges: Whether Range requests are heard.
        answers: What the next requests get instead of their bytes, first come first served: a status, or a number of
            bytes below zero after which the connection is closed (-1000: after a thousand); None serves as usual.
        every: The same for every request whose path contains the key.
        versions: ETags of the next answers, first come first served.
        asked: (path, first byte, last byte) of all requests served so far.
    """

    folder: Path
    url: str = ""
    has_ranges: bool = True
    answers: deque[int | None] = field(default_factory=deque)
    every: dict[str, int] = field(default_factory=dict)
    versions: deque[str] = field(default_factory=deque)
    asked: list[tuple[str, int, int]] = field(default_factory=list)


def _handler(server: ShardServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            answer = server.answers.popleft() if server.answers else None
            answer = next((status for part, status in server.every.items() if part in path), answer)
            file = server.folder / path.lstrip("/")
            if answer is None and not file.is_file():
                answer = 404
            if answer is not None and answer > 0:
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, end = (int(wanted[1]), min(int(wanted[2]), len(data) - 1)) if wanted else (0, len(data) - 1)
            server.asked.append((path, start, end))
            if wanted and server.has_ranges and start > end:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if wanted and server.has_ranges:
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
                data = data[start : end + 1]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            if server.versions:
                self.send_header("ETag", server.versions.popleft())
            self.end_headers()
            try:
                if answer is not None:
                    self.wfile.write(data[:-answer])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is none of the test's business."""


@contextmanager
def serve(folder: Path) -> Iterator[ShardServer]:
    """Serve a folder at a free port of this machine."""
    state = ShardServer(folder)
    with _Server(("127.0.0.1", 0), _handler(state)) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
