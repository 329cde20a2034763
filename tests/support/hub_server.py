"""A stand-in for huggingface.co and modelscope.cn on 127.0.0.1, as far as their clients ask to download and upload.

GET  /api/{models,datasets}/ORG/NAME/revision/REV        Hugging Face: files and commit of a revision
HEAD, GET  [/datasets]/ORG/NAME/resolve/COMMIT/FILE      Hugging Face: a file
GET  /api/v1/{models,datasets}/ORG/NAME/repo/{files,tree}   ModelScope: files of a revision
GET  /api/v1/{models,datasets}/ORG/NAME/repo?FilePath=   ModelScope: a file

GET  /api/whoami-v2, /openapi/v1/users/me                whose token it is
POST /api/repos/create, /api/v1/models                   a new repository
POST /api/models/ORG/NAME/preupload/REV                  Hugging Face: which files go to the large file storage
POST …ORG/NAME[.git]/info/lfs/objects/batch              where a large file is sent to
PUT  /storage/SHA256                                     a large file
POST /api[/v1/repos]/models/ORG/NAME/commit/REV          what a revision is to hold
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import huggingface_hub.constants
import pytest

Files = dict[str, bytes]


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: `repositories["models/org/name"]["main"]["config.json"]`.

    Attributes:
        asked: method and path of every request.
        tokens: token → the owner of it, who may write to the repositories of that name.
        private: repositories that not everybody can read.
        storage: large files by their hash.
        role: of all tokens, where Hugging Face is asked.
        storage_is_down: large files are refused.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, Files]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.asked: list[str] = []
        self.tokens: dict[str, str] = {}
        self.private: set[str] = set()
        self.storage: dict[str, bytes] = {}
        self.role = "write"
        self.storage_is_down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        """Answer requests until the end of the block; afterwards nobody listens on the port."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()  # seconds until it ends
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()

    def find(self, repository: str, revision: str) -> Files | str:
        """The files of a revision named by branch or commit, or Hugging Face's code for what is missing."""
        if repository not in self.repositories:
            return "RepoNotFound"
        for name, files in self.repositories[repository].items():
            if revision in (name, commit(files), "master" if name == "main" else name):
                return files
        return "RevisionNotFound"


def commit(files: Files) -> str:
    """A commit id: 40 hex digits that follow from the content."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as far as the two clients need."""

    server: HubServer

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if parts[-1] in ("whoami-v2", "me"):
            self._whoami()
        elif parts[0] == "openapi" or (parts[:2] == ["api", "v1"] and len(parts) == 5):
            self._modelscope_info("/".join(parts[2:5]))
        elif parts[:2] == ["api", "v1"]:
            self._modelscope("/".join(parts[2:5]), parts[5:], query)
        elif parts[0] == "api" and len(parts) >= 4:
            revision = parts[5] if len(parts) > 5 else "main"
            self._huggingface("/".join(parts[1:4]), revision, "/".join(parts[6:]), tree="tree" in parts)
        elif "resolve" in parts:
            kind = "" if parts[0] == "datasets" else "models/"
            before, after = parts[: parts.index("resolve")], parts[parts.index("resolve") + 1 :]
            self._file(self.server.find(kind + "/".join(before), after[0]), "/".join(after[1:]))
        else:
            self._answer(404)

    do_HEAD = do_GET

    def _huggingface(self, repository: str, revision: str, folder: str, tree: bool) -> None:
        files = self.server.find(repository, revision)
        if isinstance(files, str):
            self._answer(404, headers={"X-Error-Code": files})
            return
        if tree:
            inside = {name: content for name, content in files.items() if name.startswith(folder)}
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": commit({name: content})}
                    for name, content in inside.items()
                ]
            )
            return
        siblings = [{"rfilename": name} for name in files]
        name = repository.partition("/")[2]
        self._json(
            {
                "id": name,
                "sha": commit(files),
                "siblings": siblings,
                "private": repository in self.server.private,
                "tags": [],
                "downloads": 0,
            }
        )

    def _modelscope(self, repository: str, rest: list[str], query: dict[str, str]) -> None:
        files = self.server.find(repository, query.get("Revision", "master"))
        if isinstance(files, str):
            self._json({"Code": 10010205001, "Success": False, "Message": files}, 404)
        elif rest == ["repo"]:
            self._file(files, query["FilePath"])
        else:
            entries = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(content), "Sha256": _sha256(content)}
                for name, content in files.items()
            ]
            page = entries if query.get("PageNumber", "1") == "1" else []
            self._json({"Code": 200, "Success": True, "Data": {"Files": page, "TotalCount": len(entries)}})

    def _modelscope_info(self, repository: str) -> None:
        if repository in self.server.repositories:
            private = repository in self.server.private
            self._json({"success": True, "data": {"id": repository.partition("/")[2], "private": private}})
        else:
            self._json({"success": False, "message": "no such repository"}, 404)

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = urlsplit(self.path).path.removesuffix("/").replace(".git/", "/").strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            self._create(f"{asked['organization']}/{asked['name']}", asked.get("visibility") == "private")
        elif parts == ["api", "v1", "models"]:
            asked = json.loads(body)
            self._create(f"{asked['Path']}/{asked['Name']}", asked["Visibility"] == 1)
        elif self._owner() not in parts:
            self._answer(403)
        elif parts[-1] == "batch":
            self._places(json.loads(body)["objects"])
        elif parts[-2] == "preupload":
            modes = {file["path"]: _is_large(file["path"]) for file in json.loads(body)["files"]}
            self._json(
                {
                    "files": [
                        {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                        for path, large in modes.items()
                    ]
                }
            )
        else:
            self._commit("/".join(parts[-5:-2]), [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.storage_is_down:
            self._answer(507)
            return
        assert self.path.endswith(_sha256(content))
        self.server.storage[_sha256(content)] = content
        self._json({})

    def _owner(self) -> str | None:
        """Whose token came with the request."""
        return self.server.tokens.get((self.headers["Authorization"] or "").removeprefix("Bearer "))

    def _whoami(self) -> None:
        if owner := self._owner():
            access = {"auth": {"accessToken": {"role": self.server.role}}}
            self._json({"name": owner, **access, "success": True, "data": {"name": owner}})
        else:
            self._json({"message": "bad token"}, 401)

    def _create(self, name: str, private: bool) -> None:
        repository = f"models/{name}"
        if self._owner() != name.partition("/")[0]:
            self._json({"error": "no right to create it", "Message": "no right to create it"}, 403)
        elif repository in self.server.repositories:
            self._json({"url": f"{self.server.url}/{name}"}, 409)
        else:
            self.server.repositories[repository] = {"main": {}}
            if private:
                self.server.private.add(repository)
            self._json({"url": f"{self.server.url}/{name}", "Success": True, "Data": {"Name": name}})

    def _places(self, objects: list[dict[str, Any]]) -> None:
        places = []
        for asked in objects:
            place = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.storage:
                place["actions"] = {"upload": {"href": f"{self.server.url}/storage/{asked['oid']}"}}
            places.append(place)
        self._json({"transfer": "basic", "objects": places, "Data": {"objects": places}, "Success": True})

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        """Hugging Face sends a line for each change, ModelScope one that lists them all."""
        files = self.server.repositories[repository]["main"]
        changes = lines[0].get("actions") or [{"action": line["key"], **line["value"]} for line in lines]
        for change in changes:
            if change["action"] in ("deletedFile", "delete"):
                del files[change["path"]]
            elif change["action"] == "lfsFile" or change.get("type") == "lfs":
                files[change["path"]] = self.server.storage[change.get("oid") or change["sha256"]]
            elif change["action"] != "header":
                files[change["path"]] = base64.b64decode(change["content"])
        page = f"{self.server.url}/{repository.partition('/')[2]}/commit/{commit(files)}"
        self._json({"commitUrl": page, "commitOid": commit(files), "Success": True, "Data": {}})

    def _file(self, files: Files | str, name: str) -> None:
        if isinstance(files, str) or name not in files:
            self._answer(404, headers={"X-Error-Code": files if isinstance(files, str) else "EntryNotFound"})
            return
        content = files[name]
        headers = {"ETag": f'"{_sha256(content)}"', "X-Repo-Commit": commit(files), "Accept-Ranges": "bytes"}
        self._answer(200, content, headers)

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are kept in `asked`, not printed."""


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def point_clients_at(server: HubServer, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the clients of the hub whose ids begin with `prefix` at the stand-in and at empty caches in `folder`.

    Returns:
        `prefix`.
    """
    if prefix == "ms::":
        pytest.importorskip("modelscope_hub", reason="the extra `modelscope` is not installed")
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(folder / "home"))
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    # Xet's storage is out of reach of a stand-in; without it large files go the way of git-lfs.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    return prefix


def log_in(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients of both hubs have a token."""
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(variable, token)
