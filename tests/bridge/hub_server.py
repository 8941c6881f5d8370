"""A hub on this machine: as much of the protocol as push and pull speak, over HTTP."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret_of_the_test"


class Hub(ThreadingHTTPServer):
    """Repositories as name → branch → file → bytes; commits are counted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.commits = 0
        self.branch = "main"  # of the last commit
        self.cut = ""  # a file whose transfer breaks off
        self.changed = ""  # a file that is not sent as it is listed
        self.sent: list[tuple[str, int]] = []  # file and first byte of each transfer
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


@contextmanager
def logged_in(monkeypatch):
    """A local hub, to which the client is turned by its one seam; the user is logged in."""
    from huggingface_hub import HfApi

    from bridge.hub import client, pull, push

    hub = Hub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for module in (push, pull, client):
        monkeypatch.setattr(module, "client", lambda: HfApi(endpoint=hub.url))
    yield hub
    hub.shutdown()
    hub.server_close()


def _listed(file, content):
    """A file in the list: large kinds with their sha256, others with git's digest."""
    row = {"rfilename": file, "size": len(content)}
    if file.endswith((".safetensors", ".pt", ".bin")):
        sha256 = hashlib.sha256(content).hexdigest()
        return row | {"lfs": {"sha256": sha256, "size": len(content), "pointerSize": 134}}
    blob = b"blob %d\0%s" % (len(content), content)
    return row | {"blobId": hashlib.sha1(blob).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        branches = self.server.repositories.get(name)
        if branches is None or (name in self.server.private and not self._known()):
            return self._answer(401, {}, {"X-Error-Code": "RepoNotFound"})
        revision = parts[5 if api else 3] if len(parts) > (5 if api else 3) else "main"
        files = branches.get(self.server.branch if revision == self.server.sha else revision)
        if files is None:
            return self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if api:
            listing = [_listed(file, files[file]) for file in files]
            return self._answer(200, {"id": name, "sha": self.server.sha, "siblings": listing})
        return self._file(files, "/".join(parts[4:]))

    do_HEAD = do_GET

    def _file(self, files, file):
        if file not in files:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        content = files[file]
        if file == self.server.changed:
            content = bytes([content[0] ^ 1]) + content[1:]
        headers = {
            "X-Repo-Commit": self.server.sha,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        begin, status = 0, 200
        if (asked := self.headers.get("range", "")).startswith("bytes=") and self.command == "GET":
            begin, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            content = content[begin:]
        if self.command == "GET":
            self.server.sent.append((file, begin))
        if file == self.server.cut and self.command == "GET":
            self.close_connection = True
            headers |= {"Connection": "close"}
            return self._answer(200, content, headers, sent=len(content) // 2)
        return self._answer(status, content, headers)

    def do_POST(self):
        body = self._body()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == ["api", "validate-yaml"]:
            return self._answer(200, {"errors": [], "warnings": []})
        if not self._known():
            return self._answer(401, {"error": "Invalid username or password."})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[name] = {"main": {".gitattributes": b""}}
            if asked.get("visibility") == "private" or asked.get("private"):
                self.server.private.add(name)
            return self._answer(200, {"url": f"{self.server.url}/{name}"})
        name, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
        branches = self.server.repositories[name]
        if verb == "branch":
            branches[revision] = dict(branches["main"])
            return self._answer(200, {})
        if verb == "preupload":
            rows = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": rows})
        assert verb == "commit"
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                branches[revision][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "deletedFile":
                del branches[revision][row["value"]["path"]]
        self.server.commits += 1
        self.server.branch = revision
        url = f"{self.server.url}/{name}/commit/{self.server.sha}"
        return self._answer(
            200, {"success": True, "commitOid": self.server.sha, "commitUrl": url, "hookOutput": ""}
        )

    def _known(self):
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _body(self):
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status, content, headers=None, sent=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
