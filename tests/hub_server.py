"""A Hugging Face hub for tests, on 127.0.0.1: the requests that `huggingface_hub` makes to read a repository.

    GET   /api/models/NAME/revision/REVISION    commit and names of the files
    GET   /api/models/NAME                      the same of the newest revision
    GET   /api/models/NAME/tree/COMMIT          sizes and digests of the files, or of one folder
    POST  /api/models/NAME/paths-info/COMMIT    the same of the files that are named
    HEAD  /NAME/resolve/COMMIT/FILE             etag; large files are redirected to /blobs
    GET   /NAME/resolve/COMMIT/FILE, /blobs/DIGEST    the content, or a range of it

Data sets have `/datasets` before NAME. A repository is a folder; its commit is a digest of its content.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 10_000  # bytes from which a file is in the large file storage, and a request for it is redirected
KINDS = {"models": "", "datasets": "datasets/"}


@dataclass
class Repository:
    """What a name on the hub stands for, and what is wrong with it.

    Attributes:
        token: who does not send it is told that there is no such repository.
        gated: readers are refused until they accept terms.
        lost: files that are listed, but not there.
        cuts: by file: how many more connections break off in its middle.
    """

    folder: Path  # of the revision main
    tags: dict[str, Path] = field(default_factory=dict)  # folders of other revisions
    token: str = ""
    gated: bool = False
    lost: tuple[str, ...] = ()
    cuts: dict[str, int] = field(default_factory=dict)

    def revision(self, name: str) -> Path | None:
        """The folder of a branch, a tag or a commit."""
        named = {"main": self.folder, **self.tags}
        return (named | {commit(folder): folder for folder in named.values()}).get(name)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def commit(folder: Path) -> str:
    listing = [f"{name} {etag(content)}" for name, content in files_of(folder).items()]
    return hashlib.sha1("\n".join(listing).encode()).hexdigest()


def etag(content: bytes) -> str:
    """SHA-256 of large files; others have git's own, SHA-1."""
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """`repositories` by kind and name; `log` has method, path, range and token of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.log: list[tuple[str, str, str, str]] = []
        self.failing = False  # with status 500

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def storage(self) -> str:
        """Large files are on another host, which must not see the token."""
        return f"http://localhost:{self.server_address[1]}"

    def push(self, name: str, folder: Path, kind: str = "models", **faults) -> Repository:
        repository = self.repositories[kind, name] = Repository(folder, **faults)
        return repository

    def fetched(self) -> list[str]:
        """Paths of the contents that were sent, in order."""
        return [path for method, path, *_ in self.log if method == "GET" and not path.startswith("/api/")]

    def start(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.log.append((self.command, path, self.headers.get("Range", ""), token))
        if self.server.failing:
            return self.reply(500, b"")
        if path.startswith("/blobs/"):
            return self.blob(path.removeprefix("/blobs/"))
        for (kind, name), repository in self.server.repositories.items():
            for start, method in ((f"/api/{kind}/{name}/", self.api), (f"/{KINDS[kind]}{name}/resolve/", self.resolve)):
                if f"{path}/".startswith(start) and token == repository.token:
                    if repository.gated:
                        return self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
                    return method(repository, path[len(start) :])
        return self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})

    def api(self, repository: Repository, rest: str) -> None:
        what, revision, below = [*rest.split("/", 2), "", ""][:3]
        if (folder := repository.revision(revision or "main")) is None:
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = {**files_of(folder), **dict.fromkeys(repository.lost, b"")}
        if what in ("", "revision"):
            names = [{"rfilename": name} for name in files]
            return self.json({"id": "x", "sha": commit(folder), "siblings": names})
        if what == "paths-info":
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            return self.json([entry(name, content) for name, content in files.items() if name in asked])
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        return self.json(listing(files, below, recursive))

    def resolve(self, repository: Repository, rest: str) -> None:
        revision, _, name = rest.partition("/")
        folder = repository.revision(revision)
        content = folder and files_of(folder).get(name)
        if content is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": revision, "ETag": f'"{etag(content)}"'}
        if len(content) < LARGE:
            return self.content(content, repository, name, headers)
        linked = {"X-Linked-ETag": f'"{etag(content)}"', "X-Linked-Size": str(len(content))}
        return self.reply(302, b"", headers | linked | {"Location": f"{self.server.storage}/blobs/{etag(content)}"})

    def blob(self, digest: str) -> None:
        for repository in self.server.repositories.values():
            folders = (repository.folder, *repository.tags.values())
            for name, content in (file for folder in folders for file in files_of(folder).items()):
                if etag(content) == digest:
                    return self.content(content, repository, name, {"ETag": f'"{digest}"'})
        return self.reply(404, b"")

    def content(self, content: bytes, repository: Repository, name: str, headers: dict[str, str]) -> None:
        status, total = 200, len(content)
        if (asked := self.headers.get("Range")) is not None:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or total - 1), total - 1)
            content, status = content[first : last + 1], 206
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{total}"}
        cut = self.command == "GET" and repository.cuts.get(name, 0) > 0
        if cut:
            repository.cuts[name] -= 1
        self.reply(status, content, headers, len(content) // 2 if cut else None)

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        """Send headers and body, of which `sent` bytes before the connection breaks."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.close_connection = self.close_connection or sent is not None


def listing(files: dict[str, bytes], below: str, recursive: bool) -> list[dict]:
    """The files in the folder `below`, and all that are deeper or the names of the folders there."""
    inside = {name: content for name, content in files.items() if not below or name.startswith(f"{below}/")}
    depth = below.count("/") + 1 if below else 0
    folders = {"/".join(name.split("/")[: depth + 1]) for name in inside if name.count("/") > depth}
    here = [entry(name, content) for name, content in inside.items() if recursive or name.count("/") == depth]
    return here + [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]


def entry(name: str, content: bytes) -> dict:
    """A file as the tree lists it."""
    listed = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) >= LARGE:
        listed["lfs"] = {"oid": etag(content), "size": len(content), "pointerSize": 134}
    return listed
