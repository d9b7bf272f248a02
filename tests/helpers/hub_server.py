"""A small Hub for tests: the part of its HTTP interface that the real client uses to push and to pull models.

It keeps everything in memory and speaks the LFS protocol for weights, not Xet (`HF_HUB_DISABLE_XET=1`). By hand:
`python tests/helpers/hub_server.py --port 8123`, which prints the settings of the client.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_writer": "street", "hf_other": "somebody"}  # token -> user, who may write under that name
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}  # as created by the Hub


@dataclass
class Repo:
    """One model: its commits are whole file lists."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(repr((len(self.commits), message, sorted(files.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def sha_of(self, revision: str) -> str | None:
        """Look up a branch, tag or commit; None if it does not exist."""
        return revision if revision in self.commits else self.branches.get(revision) or self.tags.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.sha_of(revision)]


class HubServer(ThreadingHTTPServer):
    """Serves on a free port of localhost inside `with HubServer() as hub`."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), _Request)
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}  # SHA-256 -> content of completely uploaded large files
        self.requests: list[tuple[str, str, int]] = []  # method, path and status, e.g. `("PUT", "/lfs/…", 200)`
        self.collections: dict[str, list[str]] = {}  # slug -> names of its models
        self.break_uploads = 0  # number of uploads whose connection is dropped half-way
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def client_settings(self, token: str | None = "hf_writer") -> dict[str, str]:
        """Environment variables that point huggingface_hub at this server."""
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return {**settings, "HF_TOKEN": token} if token else settings


class _Refused(Exception):
    """Raised to end a request with this status."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


_ROUTES: list[tuple[str, str, Callable]] = []


def _route(methods: str, path: str) -> Callable:
    """Register a method of `_Request` as a handler; its result is sent as JSON, a pair as content and headers."""
    pattern = path.replace("{name}", "(?P<name>[^/]+/[^/]+)").replace("{revision}", "(?P<revision>[^/]+)")

    def add(answer: Callable) -> Callable:
        _ROUTES.append((methods, pattern, answer))
        return answer

    return add


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    user: str | None

    def log_message(self, *_) -> None:
        """Do not log; requests are recorded in `HubServer.requests`."""

    def _serve(self) -> None:
        self._rest, path = int(self.headers.get("Content-Length") or 0), urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = TOKENS.get(token)
        try:
            if token and not self.user:
                raise _Refused(401, "Invalid credentials in Authorization header")
            for methods, pattern, answer in _ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, path)):
                    found = answer(self, **{name: unquote(part) for name, part in match.groupdict().items()})
                    break
            else:
                raise _Refused(404, f"{self.command} {path} is not served here")
            if found is not None:
                self._send(200, *(found if isinstance(found, tuple) else (json.dumps(found).encode(), {})))
        except _Refused as refused:
            self._send(refused.status, json.dumps(refused.body).encode(), refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._read()  # otherwise the rest of it would be read as the next request
        self.server.requests.append((self.command, unquote(self.path), status))
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read(self) -> bytes:
        body, self._rest = self.rfile.read(self._rest), 0
        return body

    def _repo(self, name: str, write: bool = False) -> Repo:
        owner, repo = name.split("/")[0], self.server.repos.get(name)
        if repo is None or (repo.private and self.user != owner):
            raise _Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user != owner:
            raise _Refused(403 if self.user else 401, f"You may not write to {name}")
        return repo

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(name)
        if (sha := repo.sha_of(revision)) is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    # Push

    @_route("POST", "/api/repos/create")
    def _create(self) -> dict:
        asked = json.loads(self._read())
        owner = asked.get("organization") or self.user
        name, url = f"{owner}/{asked['name']}", f"{self.server.url}/{owner}/{asked['name']}"
        if self.user is None or self.user != owner:
            raise _Refused(403 if self.user else 401, f"You don't have the rights to create a model under {owner}")
        if name in self.server.repos:
            raise _Refused(409, "You already created this model", url=url)
        repo = self.server.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", dict(FIRST_FILES), "initial commit")
        return {"url": url, "name": name}

    @_route("POST", "/api/models/{name}/branch/(?P<branch>[^/]+)")
    def _branch(self, name: str, branch: str) -> dict:
        branches = self._repo(name, write=True).branches
        if branch in branches:
            raise _Refused(409, "Reference already exists")
        branches[branch] = branches["main"]
        return {}

    @_route("POST", "/api/models/{name}/tag/{revision}")
    def _tag(self, name: str, revision: str) -> dict:
        tags, tag = self._repo(name, write=True).tags, json.loads(self._read())["tag"]
        if tag in tags:
            raise _Refused(409, "Tag reference exists already")
        tags[tag], _ = self._files(name, revision)
        return {}

    @_route("POST", "/api/collections")
    @_route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
    @_route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items")
    def _collection(self, slug: str | None = None) -> dict:
        """Create a collection, add to it, or return it."""
        asked = json.loads(self._read()) if self.command == "POST" else {}
        slug = slug or f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0123"
        if self.user != slug.split("/")[0]:
            raise _Refused(403, "You may not write to this collection")
        shown = {"slug": slug, "title": slug, "owner": {"name": self.user}, "items": [], "position": 0, "upvotes": 0}
        shown |= {"lastUpdated": "2026-01-02T03:04:05.000Z", "private": False, "theme": "blue"}
        if slug in self.server.collections and "title" in asked:
            raise _Refused(409, "This collection exists", **shown)
        items = self.server.collections.setdefault(slug, [])
        if "item" in asked and asked["item"]["id"] not in items:
            items.append(asked["item"]["id"])
        return shown

    @_route("POST", "/api/validate-yaml")
    def _validate(self) -> dict:
        return {"errors": [], "warnings": []}

    @_route("POST", "/api/models/{name}/preupload/{revision}")
    def _preupload(self, name: str, revision: str) -> dict:
        self._repo(name, write=True)
        there, asked = self._files(name, revision)[1], json.loads(self._read())["files"]
        for file in asked:
            path = file["path"]
            file |= {"uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False}
            file["oid"] = _oid(path, there[path]) if path in there else None
        return {"files": asked}

    @_route("POST", r"/{name}\.git/info/lfs/objects/batch")
    def _lfs_batch(self, name: str) -> dict:
        self._repo(name, write=True)
        objects = json.loads(self._read())["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.lfs:
                wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    @_route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def _lfs_put(self, oid: str) -> tuple[bytes, dict] | None:
        if self.server.break_uploads:
            self.server.break_uploads -= 1
            self.rfile.read(self._rest // 2)
            self.close_connection = True
            return self.connection.shutdown(2)
        content = self._read()
        if hashlib.sha256(content).hexdigest() != oid:  # truncated or damaged
            raise _Refused(400, "The content does not have this SHA-256")
        self.server.lfs[oid] = content
        return b"", {}

    @_route("POST", "/api/models/{name}/commit/{revision}")
    def _commit(self, name: str, revision: str) -> dict:
        repo = self._repo(name, write=True)
        files = dict(self._files(name, revision)[1])
        lines = [json.loads(line) for line in self._read().splitlines()]
        for kind, value in ((line["key"], line["value"]) for line in lines):
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "deletedFile":
                del files[value["path"]]
            elif kind == "lfsFile":
                if value["oid"] not in self.server.lfs:
                    raise _Refused(400, f"LFS object {value['oid']} of {value['path']} was never uploaded")
                files[value["path"]] = self.server.lfs[value["oid"]]
        sha = repo.commit(revision, files, lines[0]["value"]["summary"])
        return {"commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}", "success": True}

    # Pull

    @_route("GET", "/api/models/{name}")
    @_route("GET", "/api/models/{name}/revision/{revision}")
    def _info(self, name: str, revision: str = "main") -> dict:
        sha, files = self._files(name, revision)
        about = {"id": name, "modelId": name, "sha": sha, "private": self._repo(name).private, "tags": []}
        return {**about, "siblings": [{"rfilename": path} for path in files]}

    @_route("GET", "/api/models/{name}/tree/{revision}")
    def _tree(self, name: str, revision: str) -> list:
        files = self._files(name, revision)[1].items()
        return [{"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)} for path, data in files]

    @_route("GET HEAD", "/{name}/resolve/{revision}/(?P<file>.+)")
    def _resolve(self, name: str, revision: str, file: str) -> tuple[bytes, dict]:
        sha, files = self._files(name, revision)
        if file not in files:
            raise _Refused(404, f"{file} does not exist", "EntryNotFound")
        return files[file], {"X-Repo-Commit": sha, "ETag": f'"{_oid(file, files[file])}"'}

    @_route("GET", "/api/whoami-v2")
    def _whoami(self) -> dict:
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}}


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt"))


def _oid(path: str, data: bytes) -> str:
    """Return a large file's SHA-256, or a small file's Git blob id."""
    return (hashlib.sha256(data) if _is_large(path) else hashlib.sha1(b"blob %d\0" % len(data) + data)).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small Hub on localhost, in memory.")
    parser.add_argument("--port", type=int, default=0)
    hub = HubServer(parser.parse_args().port)
    print("export", *(f"{name}={value}" for name, value in hub.client_settings().items()), flush=True)
    _Request.log_message = lambda self, text, *words: print(text % words, flush=True)
    hub.serve_forever()
