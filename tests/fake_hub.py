"""Hugging Face's Hub on loopback: dataset repositories of several commits, and a count of what is fetched."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """A hub; `fetched` counts the bytes sent of each file."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.revisions, self.fetched = {}, {}, {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, *revisions: str) -> str:
        """Commit a folder's files to a repository, and return the commit, which the revisions name."""
        files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories.setdefault(name, {})[commit] = files
        self.revisions |= {(name, revision): commit for revision in (*revisions, commit)}
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            self.api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self.resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self.answer(404, b"{}")

    def api(self, name: str, rest: list[str]):
        action, revision, *under = rest or ["revision", "main"]
        commit = self.server.revisions.get((name, revision))
        if commit is None:
            code = "RevisionNotFound" if name in self.server.repositories else "RepoNotFound"
            return self.answer(404, b"{}", {"X-Error-Code": code})
        files = self.server.repositories[name][commit]
        listed = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
        listed += [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders)]
        if action == "tree":
            inside = [entry for entry in listed if PurePosixPath(entry["path"]).parent == PurePosixPath(*under)]
            return self.answer(200, json.dumps(inside).encode())
        if action == "paths-info":
            wanted = json.loads(self.body)["paths"]
            return self.answer(200, json.dumps([entry for entry in listed if entry["path"] in wanted]).encode())
        about = {"id": name, "sha": commit, "private": False, "siblings": [{"rfilename": path} for path in files]}
        return self.answer(200, json.dumps(about).encode())

    def resolve(self, name: str, revision: str, path: str):
        commit = self.server.revisions.get((name, revision))
        data = self.server.repositories[name][commit].get(path) if commit else None
        if data is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, part = 200, data
        if spec := self.headers.get("Range"):
            first, _, last = spec.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1)
            status, part = 206, data[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self.answer(status, part, headers, (name, path))

    def answer(self, status: int, body: bytes, headers: dict = {}, file=None):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(body), 2**16):
                self.wfile.write(body[start : start + 2**16])
                if file:
                    self.server.fetched[file] = self.server.fetched.get(file, 0) + len(body[start : start + 2**16])
        except OSError:  # the client has read enough
            self.close_connection = True


@contextmanager
def running():
    """Yield a hub that listens on a port chosen by the system."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
