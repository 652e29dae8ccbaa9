"""An object store in this process that can go wrong: S3's protocol, and Google's conditions, over HTTP on 127.0.0.1.

It keeps objects in a dictionary, so that what a killed writer left can be looked at without the code that wrote it. A
rule may let any request be lost before or after it was carried out, answer it with a fault or slowly, or have the
process that sent it killed before it is carried out, or after.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from xml.sax.saxutils import escape, unescape

GOOGLE = "x-goog-if-generation-match"


@dataclass(frozen=True)
class Stored:
    """An object: its content, its ETag as S3 gives it, its generation as Google does, and when it was written."""

    content: bytes
    generation: int
    modified: float

    @property
    def etag(self) -> str:
        """MD5, in quotes: equal contents have the same."""
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


@dataclass
class Asked:
    """A request as rules see it: `PUT`, `GET`, `HEAD`, `DELETE`, `COPY`, `LIST` or `PART`, and the key or prefix.

    `port` is the client's, by which its process is found.
    """

    verb: str
    key: str
    conditional: bool = False
    port: int = 0


@dataclass
class Answer:
    """What a request is answered."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Rule = Callable[[Asked], str | None]
"""Says what goes wrong with a request: `lost before`, `lost after`, `slow`, the number of a status, or nothing."""


class ObjectServer:
    """A server on a free port, in threads of this process.

    Args:
        honours: whether conditions are looked at.
    """

    def __init__(self, honours: bool = True) -> None:
        self.honours = honours
        self.objects: dict[str, Stored] = {}
        self.asked: list[Asked] = []
        self.rule: Rule | None = None
        self.after: Callable[[Asked], object] | None = None  # called when a request was carried out, before its answer
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._count, self._lock = itertools.count(1), threading.RLock()
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """Returns what a client's environment says to come here."""
        return {
            "AWS_ENDPOINT_URL": self.address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
            "GOOGLE_SERVICE_ACCOUNT_KEY": f'{{"gcs_base_url": "{self.address}", "disable_oauth": true, '
            '"client_email": "", "private_key": "", "private_key_id": ""}',
        }  # fmt: skip

    def __enter__(self) -> ObjectServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def decide(self, asked: Asked) -> str | None:
        """Notes a request, and returns what goes wrong with it."""
        with self._lock:
            self.asked.append(asked)
            return self.rule(asked) if self.rule else None

    def carry_out(self, asked: Asked, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        """Does what a request asks for; requests are carried out one by one."""
        with self._lock:
            return getattr(self, f"_{asked.verb.lower()}")(asked.key, query, headers, body)  # type: ignore[no-any-return]

    def _put(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        there = self.objects.get(key)
        wanted, absent, generation = headers.get("If-Match"), headers.get("If-None-Match"), headers.get(GOOGLE)
        if self.honours:
            refused = absent == "*" and there is not None
            refused = refused or (wanted is not None and there is not None and there.etag != wanted)
            refused = refused or (generation is not None and int(generation) != (there.generation if there else 0))
            if refused:
                return Answer(412, _error("PreconditionFailed"))
            if wanted is not None and there is None:
                return Answer(404, _error("NoSuchKey"))
        return self._written(key, body)

    def _written(self, key: str, body: bytes) -> Answer:
        self.objects[key] = made = Stored(body, next(self._count), time.time())
        return Answer(200, b"", {"ETag": made.etag, "x-goog-generation": str(made.generation)})

    def _get(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        there = self.objects.get(key)
        if there is None:
            return Answer(404, _error("NoSuchKey"))
        if headers.get("If-Match") not in (None, there.etag):
            return Answer(412, _error("PreconditionFailed"))
        content, status, found = there.content, 200, re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range") or "")
        about = {"ETag": there.etag, "x-goog-generation": str(there.generation), "Last-Modified": _date(there)}
        if found:
            start, stop, status = int(found[1]), min(int(found[2]) + 1, len(content)), 206
            about["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content = content[start:stop]
        return Answer(status, content, about)

    _head = _get

    def _delete(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        """One object (Google), or those that are listed (S3)."""
        named = [key] if key else re.findall("<Key>(.*?)</Key>", body.decode())
        for one in named:
            self.objects.pop(unescape(one), None)
        gone = "".join(f"<Deleted><Key>{one}</Key></Deleted>" for one in named)
        return Answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def _copy(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        source = urllib.parse.unquote(headers.get("x-amz-copy-source") or headers["x-goog-copy-source"])
        there = self.objects.get(source.lstrip("/").partition("/")[2])
        if there is None:
            return Answer(404, _error("NoSuchKey"))
        self._written(key, there.content)
        return Answer(200, f"<CopyObjectResult><ETag>{escape(there.etag)}</ETag></CopyObjectResult>".encode())

    def _list(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        prefix, flat = query.get("prefix", ""), not query.get("delimiter")
        objects, folders = [], set()
        for name, one in sorted(self.objects.items()):
            if not name.startswith(prefix):
                continue
            first, slash, _ = name[len(prefix) :].partition("/")
            if flat or not slash:
                objects.append(
                    f"<Contents><Key>{escape(name)}</Key><Size>{len(one.content)}</Size><ETag>{escape(one.etag)}"
                    f"</ETag><LastModified>{_date(one, iso=True)}</LastModified></Contents>"
                )
            else:
                folders.add(f"<CommonPrefixes><Prefix>{escape(prefix + first)}/</Prefix></CommonPrefixes>")
        inside = "".join([*objects, *sorted(folders)])
        return Answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{inside}</ListBucketResult>".encode())

    def _part(self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        """Uploads in parts: begun, a part, or joined."""
        if "uploads" in query:
            name = f"upload{next(self._count)}"
            self._uploads[name] = {}
            inside = f"<Bucket>b</Bucket><Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
            return Answer(200, f"<InitiateMultipartUploadResult>{inside}</InitiateMultipartUploadResult>".encode())
        if "partNumber" in query:
            self._uploads[query["uploadId"]][int(query["partNumber"])] = body
            return Answer(200, b"", {"ETag": f'"{len(body)}"'})
        parts = self._uploads.pop(query["uploadId"])
        made = self._written(key, b"".join(parts[number] for number in sorted(parts)))
        etag = escape(made.headers["ETag"])
        inside = f"<Location>x</Location><Bucket>b</Bucket><Key>{escape(key)}</Key><ETag>{etag}</ETag>"
        return Answer(200, f"<CompleteMultipartUploadResult>{inside}</CompleteMultipartUploadResult>".encode())


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def _date(one: Stored, iso: bool = False) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(one.modified))
    return f"{seconds}.{int(one.modified % 1 * 1000):03d}Z" if iso else formatdate(one.modified, usegmt=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a client that was killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    store: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        path, _, text = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
        key = urllib.parse.unquote(path).lstrip("/").partition("/")[2]
        body = self._body()
        verb = self.command
        if {"uploads", "uploadId"} & set(query):
            verb = "PART"
        elif verb == "PUT" and (self.headers.get("x-amz-copy-source") or self.headers.get("x-goog-copy-source")):
            verb = "COPY"
        elif verb == "POST" and "delete" in query:
            verb = "DELETE"
        elif verb == "GET" and not key:
            verb, key = "LIST", query.get("prefix", "")
        conditional = any(self.headers.get(name) for name in ("If-Match", "If-None-Match", GOOGLE))
        asked = Asked(verb, key, conditional, self.client_address[1])
        wrong = self.store.decide(asked)
        if wrong == "lost before":
            self.close_connection = True
            return
        if wrong is not None and wrong.isdigit():
            return self._answer(Answer(int(wrong), _error("SlowDown")))
        answer = self.store.carry_out(asked, query, self.headers, body)  # type: ignore[arg-type]
        if self.store.after:
            self.store.after(asked)
        if wrong == "lost after":
            self.close_connection = True
            return
        self._answer(answer, slow=wrong == "slow")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, answer: Answer, slow: bool = False) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        step = max(1, len(answer.body) // 4) if slow else max(1, len(answer.body))
        for start in range(0, len(answer.body), step):
            self.wfile.write(answer.body[start : start + step])
            if slow:
                time.sleep(0.05)
