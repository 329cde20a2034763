"""A stand-in for huggingface.co and modelscope.cn on 127.0.0.1, as far as their clients ask when they download.

GET  /api/{models,datasets}/ORG/NAME/revision/REV        Hugging Face: files and commit of a revision
HEAD, GET  [/datasets]/ORG/NAME/resolve/COMMIT/FILE      Hugging Face: a file
GET  /api/v1/{models,datasets}/ORG/NAME/repo/{files,tree}   ModelScope: files of a revision
GET  /api/v1/{models,datasets}/ORG/NAME/repo?FilePath=   ModelScope: a file
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Files = dict[str, bytes]


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: `repositories["models/org/name"]["main"]["config.json"]`.

    Attributes:
        asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, Files]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        """Answer requests until the end of the block; afterwards nobody listens on the port."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
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
    """Answers as far as the downloads of the two clients need."""

    server: HubServer

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if parts[:2] == ["api", "v1"]:
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
            {"id": name, "sha": commit(files), "siblings": siblings, "private": False, "tags": [], "downloads": 0}
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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
