"""A small server on this machine that speaks the hub's protocol, for what huggingface_hub asks to push and to fetch."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

LARGE = (".safetensors",)
"""Endings of what goes by Git LFS."""


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: By name: commits by their hash, each the content of files by path; branches to hashes.
        private: Names that need `TOKEN`.
        asked: What was asked for, `METHOD path`.
    """

    TOKEN = "hf_of_the_test"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, name: str) -> None:
        self.repositories[name] = {}
        self.branches[name] = {}
        self.commit(name, "main", {})

    def commit(
        self,
        name: str,
        branch: str,
        changed: dict[str, bytes],
        deleted: frozenset[str] = frozenset(),
    ) -> str:
        """A commit on a branch; its hash."""
        before = self.repositories[name].get(self.branches[name].get(branch, ""), {})
        number = str(len(self.repositories[name]))
        commit = hashlib.sha1((name + number).encode()).hexdigest()
        after = before | changed
        self.repositories[name][commit] = {k: v for k, v in after.items() if k not in deleted}
        self.branches[name][branch] = commit
        return commit

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What is there now."""
        return self.repositories[name][self.branches[name].get(revision, revision)]


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        hub = self.server
        if self._stranger():
            self._json({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            if name in hub.repositories:
                address = f"{hub.url}/{name}"
                self._json({"error": "You already created this repo", "url": address}, 409)
                return
            hub.create(name)
            if wanted.get("private") or wanted.get("visibility") == "private":
                hub.private.add(name)
            self._json({"url": f"{hub.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            hub.branches[found[1]].setdefault(found[2], hub.branches[found[1]]["main"])
            self._json({})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            changed, deleted = {}, set()
            for line in body.decode().splitlines():
                match json.loads(line):
                    case {"key": "file", "value": {"path": at, "content": content}}:
                        changed[at] = base64.b64decode(content)
                    case {"key": "lfsFile", "value": {"path": at, "oid": oid}}:
                        changed[at] = hub.blobs[oid]
                    case {"key": "deletedFile", "value": {"path": at}}:
                        deleted.add(at)
            proposal = "create_pr=1" in self.path
            branch = "refs/pr/1" if proposal else found[2]
            commit = hub.commit(found[1], branch, changed, frozenset(deleted))
            address = f"{hub.url}/{found[1]}"
            self._json(
                {
                    "commitUrl": f"{address}/commit/{commit}",
                    "commitOid": commit,
                    "pullRequestUrl": f"{address}/discussions/1" if proposal else None,
                }
            )
        else:
            self._json({"error": f"the test's hub knows no {path}"}, 501)

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.blobs[oid] = content
        self._send(200, {}, b"")

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _file(self) -> None:
        """`/organisation/name/resolve/revision/path`, with the headers that the hub gives."""
        hub = self.server
        hub.asked.append(f"{self.command} {self.path}")
        if listing := re.fullmatch(r"/api/models/(.+)/tree/([^/?]+)\?.*", self.path):
            files = hub.files(listing[1], listing[2])
            self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                    for path, content in files.items()
                ]
            )
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        name = found[1] if found else ""
        hidden = name in hub.private and self._token() != Hub.TOKEN
        if found is None or name not in hub.repositories or hidden:
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
            return
        commit = hub.branches[name].get(found[2], found[2])
        if commit not in hub.repositories[name]:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        content = hub.repositories[name][commit].get(found[3])
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            self._send(404, headers, b"")
            return
        tag = hashlib.sha256(content).hexdigest()
        self._send(200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, content)

    def _body(self) -> bytes:
        """Of known length, or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _token(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

    def _stranger(self) -> bool:
        return self._token() != Hub.TOKEN

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(
            status, {"Content-Type": "application/json"}, json.dumps(value).encode(), whole=True
        )

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, whole: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if whole or self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one, with an empty cache."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    with serving() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
        yield server
