"""A small Hub for tests: the part of its HTTP interface that the real client uses to push and to pull models.

It keeps everything in memory and speaks the LFS protocol for weights, not Xet (`HF_HUB_DISABLE_XET=1`). By hand:
`python tests/hub_server.py --port 8123`, which prints the settings of the client.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_writer": "street", "hf_other": "somebody"}  # token -> user, who may write under that name
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}  # as the Hub makes them


@dataclass
class Repo:
    """One model: its commits are whole file lists."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        content = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{message}{content}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def sha_of(self, revision: str) -> str | None:
        """Of a branch or a commit; None where there is no such revision."""
        return revision if revision in self.commits else self.branches.get(revision) or self.tags.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.sha_of(revision)]


class HubServer(ThreadingHTTPServer):
    """Serves on a free port of localhost inside `with HubServer() as hub`.

    Attributes:
        repos: name -> `Repo`.
        lfs: SHA-256 -> content of the large files that arrived whole.
        requests: what was asked and answered, e.g. `("PUT", "/lfs/…", 200)`.
        break_uploads: so many uploads lose their connection half-way.
        refuse_uploads: so many are answered with 403 after their content arrived.
        half_arrived: set when half of a broken upload is here.
        hold: uploads wait half-way until this is set; set from the start.
    """

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.collections: dict[str, list[str]] = {}  # slug -> names of its models
        self.break_uploads = self.refuse_uploads = 0
        self.half_arrived, self.hold = threading.Event(), threading.Event()
        self.hold.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.hold.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no error of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def client_settings(self, token: str | None = "hf_writer") -> dict[str, str]:
        """Environment variables that send huggingface_hub here."""
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return {**settings, "HF_TOKEN": token} if token else settings


class _Answer(Exception):
    """Ends a request with this status."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(status)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}
        self.body = {"error": message or code}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_) -> None:
        """Silent; `HubServer.requests` keeps them."""

    def _serve(self) -> None:
        self._rest = int(self.headers.get("Content-Length") or 0)
        path = urlsplit(self.path).path
        try:
            user = self._user()
            for method, pattern, answer in _ROUTES:
                if self.command in method and (match := re.fullmatch(pattern, path)):
                    return answer(self, user, **{name: unquote(part) for name, part in match.groupdict().items()})
            raise _Answer(404, message=f"{self.command} {path} is not served here")
        except _Answer as answer:
            self._send(answer.status, json.dumps(answer.body).encode(), answer.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.rfile.read(self._rest)  # or the next request on this connection would begin in the midst of this one
        self.server.requests.append((self.command, unquote(self.path), status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _body(self) -> bytes:
        body, self._rest = self.rfile.read(self._rest), 0
        return body

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _Answer(401, message="Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _repo(self, name: str, user: str | None, write: bool = False) -> Repo:
        owner = name.split("/")[0]
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and user != owner):
            raise _Answer(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise _Answer(403 if user else 401, message=f"You may not write to {name}")
        return repo

    def _files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repo.sha_of(revision)
        if sha is None:
            raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    # Push

    def _create(self, user: str | None) -> None:
        asked = json.loads(self._body())
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if user is None:
            raise _Answer(401, message="Invalid username or password.")
        if user != name.split("/")[0]:
            raise _Answer(403, message=f"You don't have the rights to create a model under {name.split('/')[0]}")
        if name in self.server.repos:
            return self._json({"url": f"{self.server.url}/{name}", "error": "You already created this model"}, 409)
        repo = self.server.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", dict(FIRST_FILES), "initial commit")
        self._json({"url": f"{self.server.url}/{name}", "name": name})

    def _branch(self, user: str | None, name: str, branch: str) -> None:
        repo = self._repo(name, user, write=True)
        if branch in repo.branches:
            raise _Answer(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def _tag(self, user: str | None, name: str, revision: str) -> None:
        repo, tag = self._repo(name, user, write=True), json.loads(self._body())["tag"]
        if tag in repo.tags:
            raise _Answer(409, message="Tag reference exists already")
        repo.tags[tag], _ = self._files(repo, revision)
        self._json({})

    def _collection(self, user: str | None, slug: str | None = None) -> None:
        """Make a collection, add to one, or show it."""
        asked = json.loads(self._body()) if self.command == "POST" else {}
        slug = slug or f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0123"
        if user != slug.split("/")[0]:
            raise _Answer(403, message="You may not write to this collection")
        there, items = slug in self.server.collections, self.server.collections.setdefault(slug, [])
        if "item" in asked and asked["item"]["id"] not in items:
            items.append(asked["item"]["id"])
        shown = {"slug": slug, "title": slug, "owner": {"name": user}, "items": [], "position": 0, "upvotes": 0}
        shown |= {"lastUpdated": "2026-01-02T03:04:05.000Z", "private": False, "theme": "blue"}
        self._json(shown, 409 if there and "title" in asked else 200)

    def _validate(self, user: str | None) -> None:
        content = json.loads(self._body())["content"]
        if not content.startswith("---\n"):
            return self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        self._json({"errors": [], "warnings": []})

    def _preupload(self, user: str | None, name: str, revision: str) -> None:
        _, files = self._files(self._repo(name, user, write=True), revision)
        asked = json.loads(self._body())["files"]
        self._json({"files": [_upload_mode(file["path"], file["size"], files) for file in asked]})

    def _lfs_batch(self, user: str | None, name: str) -> None:
        self._repo(name, user, write=True)
        objects = json.loads(self._body())["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.lfs:
                wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, user: str | None, oid: str) -> None:
        half = self.rfile.read(self._rest // 2)
        self._rest -= len(half)
        self.server.half_arrived.set()
        self.server.hold.wait()
        if self.server.break_uploads:
            self.server.break_uploads -= 1
            self.server.requests.append((self.command, self.path, 0))
            self.close_connection = True
            return self.connection.shutdown(2)
        content = half + self._body()
        if self.server.refuse_uploads:
            self.server.refuse_uploads -= 1
            raise _Answer(403, message="Storage is down")
        if hashlib.sha256(content).hexdigest() != oid:  # cut short, or damaged
            raise _Answer(400, message="The content does not have this SHA-256")
        self.server.lfs[oid] = content
        self._send(200, b"")

    def _commit(self, user: str | None, name: str, revision: str) -> None:
        repo = self._repo(name, user, write=True)
        files = dict(self._files(repo, revision)[1])
        lines = [json.loads(line) for line in self._body().splitlines()]
        for kind, value in ((line["key"], line["value"]) for line in lines):
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.server.lfs:
                    raise _Answer(400, message=f"LFS object {value['oid']} of {value['path']} was never uploaded")
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files, lines[0]["value"]["summary"])
        self._json({"commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}", "success": True})

    # Pull

    def _info(self, user: str | None, name: str, revision: str = "main") -> None:
        repo = self._repo(name, user)
        sha, files = self._files(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings})

    def _refs(self, user: str | None, name: str) -> None:
        branches = self._repo(name, user).branches.items()
        refs = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha} for branch, sha in branches]
        self._json({"branches": refs, "tags": [], "converts": []})

    def _tree(self, user: str | None, name: str, revision: str) -> None:
        _, files = self._files(self._repo(name, user), revision)
        self._json(
            [{"type": "file", "path": path, "size": len(data), "oid": _blob(data)} for path, data in files.items()]
        )

    def _resolve(self, user: str | None, name: str, revision: str, file: str) -> None:
        sha, files = self._files(self._repo(name, user), revision)
        if file not in files:
            raise _Answer(404, "EntryNotFound", f"{file} does not exist")
        data = files[file]
        self._send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{_oid(file, data)}"'})

    def _whoami(self, user: str | None) -> None:
        if user is None:
            raise _Answer(401, message="Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})


def _upload_mode(path: str, size: int, files: dict[str, bytes]) -> dict:
    oid = _oid(path, files[path]) if path in files else None
    return {"path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False, "oid": oid}


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_large(path) else _blob(data)


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt"))


def _blob(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME, _REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_API = rf"/api/models/{_NAME}"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", _Handler._branch),
    ("POST", rf"{_API}/tag/{_REVISION}", _Handler._tag),
    ("POST", "/api/collections", _Handler._collection),
    ("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items", _Handler._collection),
    ("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)", _Handler._collection),
    ("POST", rf"{_API}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"{_API}/commit/{_REVISION}", _Handler._commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_put),
    ("GET", _API, _Handler._info),
    ("GET", rf"{_API}/revision/{_REVISION}", _Handler._info),
    ("GET", rf"{_API}/refs", _Handler._refs),
    ("GET", rf"{_API}/tree/{_REVISION}", _Handler._tree),
    ("GET HEAD", rf"/{_NAME}/resolve/{_REVISION}/(?P<file>.+)", _Handler._resolve),
    ("GET", "/api/whoami-v2", _Handler._whoami),
]


def main() -> None:
    """Serve until interrupted, and print every request."""
    parser = argparse.ArgumentParser(description="A small Hub on localhost, in memory.")
    parser.add_argument("--port", type=int, default=0)
    hub = HubServer(parser.parse_args().port)
    print("export", *(f"{name}={value}" for name, value in hub.client_settings().items()), flush=True)
    _Handler.log_message = lambda self, text, *words: print(text % words, flush=True)
    try:
        hub.serve_forever()
    except KeyboardInterrupt:
        hub.server_close()


if __name__ == "__main__":
    main()
