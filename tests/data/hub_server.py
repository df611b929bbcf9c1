"""The Hugging Face Hub, as far as its packages need it to read one dataset, on this machine."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

NAME = "org/name"


class HubServer:
    """The files of the dataset `org/name`, by their paths, at one commit."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.commit = "1" * 40
        self.files: dict[str, bytes] = {}

    def listed(self, folder: str) -> list[dict[str, object]]:
        """The files and folders that are in a folder itself."""
        start = f"{folder}/" if folder else ""
        inside = [path for path in self.files if path.startswith(start)]
        folders = {start + path[len(start) :].split("/")[0] for path in inside} - set(inside)
        entries = [self.entry(path) for path in inside if "/" not in path[len(start) :]]
        return entries + [{"type": "directory", "oid": "", "path": each} for each in folders]

    def entry(self, path: str) -> dict[str, object]:
        return {"type": "file", "oid": "", "size": len(self.files[path]), "path": path}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    hub: HubServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if re.fullmatch(rf"/api/datasets/{NAME}(/revision/.+)?", path):
                siblings = [{"rfilename": file} for file in hub.files]
                self.answer_json({"id": NAME, "sha": hub.commit, "siblings": siblings})
            elif tree := re.fullmatch(rf"/api/datasets/{NAME}/tree/[^/]+(?:/(.+))?", path):
                listed = hub.listed(tree[1] or "")
                self.answer_json(listed) if listed else self.answer(404)
            elif file := re.fullmatch(rf"/datasets/{NAME}/resolve/[^/]+/(.+)", path):
                self.answer_file(file[1])
            else:
                self.answer(404)

        def answer_json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer_file(self, name: str) -> None:
            if name not in hub.files:
                self.answer(404)
                return
            content, headers = hub.files[name], {"ETag": '"tag"', "X-Repo-Commit": hub.commit}
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if part:
                start, end = int(part[1]), min(int(part[2]) + 1, len(content))
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
                content = content[start:end]
            self.answer(206 if part else 200, content, headers)

        def answer(
            self, status: int, content: bytes = b"", headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            headers = headers or {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit}
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with ThreadingHTTPServer(("localhost", 0), Handler) as running:
        hub = HubServer(f"http://localhost:{running.server_port}")
        Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            running.shutdown()
