"""Web servers on this machine, which serve files from memory, well and badly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Server:
    """Files by their paths, and how they are served.

    Attributes:
        ranges: whether parts of files are given.
        sizes: whether the size of a file is told.
        failures: how many of the next answers are 503.
        cut_at: after so many bytes, the connection is lost, until `cuts` of them were.
        status: of all answers, if given.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.ranges = self.sizes = True
        self.failures = self.cuts = 0
        self.cut_at: int | None = None
        self.status: int | None = None
        self.served = 0  # bytes


@contextmanager
def web_server() -> Iterator[Server]:
    server: Server

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(is_wanted=False)

        def do_GET(self) -> None:
            self.answer(is_wanted=True)

        def answer(self, is_wanted: bool) -> None:
            content = server.files.get(self.path)
            status = server.status or (200 if content is not None else 404)
            if server.failures:
                server.failures -= 1
                status = 503
            if status != 200 or content is None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, end = 0, len(content)
            if asked and server.ranges:
                start, end = int(asked[1]), min(int(asked[2]) + 1, end)
                status = 206
            self.send_response(status)
            part = content[start:end]
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("ETag", f'"{hash(content)}"')
            if server.sizes:
                self.send_header("Content-Length", str(len(part)))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if is_wanted:
                self.write(part)

        def write(self, part: bytes) -> None:
            if server.cut_at is not None and server.cuts and len(part) > server.cut_at:
                server.cuts -= 1
                part = part[: server.cut_at]
                self.close_connection = True
                self.wfile.write(part if server.sizes else b"%x\r\n%b\r\n" % (len(part), part))
                return
            server.served += len(part)
            if not server.sizes:
                part = b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part) if part else b"0\r\n\r\n"
            self.wfile.write(part)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Says nothing of clients that have heard enough."""

    with Quiet(("localhost", 0), Handler) as running:
        server = Server(f"http://localhost:{running.server_port}")
        thread = Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
