"""Uploading to the Files API: the resumable protocol, and multipart in one request.

A start answers an upload URL, which is its own credential. Bytes come in one or more requests; all but the last in
multiples of 8 MiB, each at the offset where the one before ended. What a broken or refused request brought is dropped
whole, so `query` tells the last offset that was acknowledged; only the fault `upload_half` keeps more. Name conflicts
and unsupported types are refused at the end, not at the start. Source: Gemini API docs, "Files", and captures of the
live service.
"""

import hashlib
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from pixscribe.emulator.books import Books, Upload
from pixscribe.emulator.call import Call
from pixscribe.emulator.fault_uploads import UPLOAD_BREAKS, UPLOAD_REPLIES, UPLOAD_SPOILERS
from pixscribe.emulator.faults import FaultSource
from pixscribe.emulator.files import FILE_ID, LIFE_S, FileStore, StoredFile
from pixscribe.emulator.media import BATCH_TYPES, is_uploadable, types_of
from pixscribe.emulator.replies import (
    Refused,
    Reply,
    invalid_rpc,
    json_reply,
    rpc_error,
    rpc_type,
    session_missing,
    storage_full,
)
from pixscribe.emulator.spool import Spool

if TYPE_CHECKING:
    from hashlib import _Hash

GRANULARITY_BYTES = 8 * 1024 * 1024
_MAX_FILE_BYTES = 2 * 1024**3
_HEAD_BYTES = 32
_SNAKE = {"displayName": "display_name", "mimeType": "mime_type", "sizeBytes": "size_bytes"}
_WRITABLE = frozenset({"name", "display_name", "mime_type", "size_bytes"})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the start of an upload asks for."""

    project: str
    file_id: str
    display_name: str | None
    mime_type: str
    size_bytes: int | None


@dataclass(slots=True)
class _Received:
    """Bytes so far, in `text` if that is there. `kept` is empty when nobody will look at them."""

    size_bytes: int = 0
    head: bytes = b""
    hash: "_Hash" = field(default_factory=hashlib.sha256)
    kept: list[bytes] = field(default_factory=list)
    text: Spool | None = None

    def copy(self) -> "_Received":
        """With the same `text`: it is written from `size_bytes` on, whatever was there."""
        return _Received(self.size_bytes, self.head, self.hash.copy(), self.kept.copy(), self.text)

    def add(self, part: bytes, *, keep: bool) -> None:
        if self.text is not None:
            self.text.write(part, self.size_bytes)
        elif keep:
            self.kept.append(part)
        self.size_bytes += len(part)
        self.head = (self.head + part[:_HEAD_BYTES])[:_HEAD_BYTES]
        self.hash.update(part)


@dataclass(slots=True)
class _Session:
    """`fault` was drawn at the start; `faulted` tells that it was met."""

    wanted: _Wanted
    started_s: float
    fault: str | None
    faulted: bool = False
    received: _Received = field(default_factory=_Received)
    final: bool = False


class Uploads:
    def __init__(
        self, store: FileStore, books: Books, faults: FaultSource, clock: Callable[[], float], *, keep_bytes: bool
    ) -> None:
        self._store, self._books, self._faults, self._clock = store, books, faults, clock
        self._keep_bytes = keep_bytes
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._random = random.Random()

    async def start(self, call: Call) -> Reply:
        project = call.project()
        if call.request.headers.get("X-Goog-Upload-Command", "").strip() != "start":
            raise invalid_rpc("X-Goog-Upload-Command must be 'start' where there is no upload_id.")
        wanted = _read_wanted(call.request.headers, await call.body(), project)
        if not self._store.has_room(project, wanted.size_bytes or 0):
            raise Refused(storage_full(self._store.capacity_bytes))
        fault = self._faults.next("upload")
        if fault == "upload_storage_full":
            return UPLOAD_REPLIES[fault](wanted.file_id)
        self._forget_old()
        upload_id = f"UP{self._random.getrandbits(128):032x}"
        self._sessions[upload_id] = _Session(wanted, self._clock(), fault, received=_nothing_yet(wanted))
        return Reply(200, content_type="text/plain; charset=utf-8", headers=_start_headers(call, upload_id))

    async def bytes(self, call: Call) -> Reply:
        """Upload, query, finalize or cancel, as X-Goog-Upload-Command says; needs no key."""
        session = self._session(call)
        commands = {word.strip() for word in call.request.headers.get("X-Goog-Upload-Command", "").split(",")}
        if commands == {"query"}:
            return Reply(200, headers=_status(session))
        if commands == {"cancel"}:
            del self._sessions[call.request.query["upload_id"]]
            return Reply(200, headers={"X-Goog-Upload-Status": "cancelled"})
        if not commands or not commands <= {"upload", "finalize"}:
            raise _bad_bytes(session, f"Unknown X-Goog-Upload-Command {', '.join(sorted(commands))!r}.")
        finalize, fault = "finalize" in commands, self._due(session)
        if fault in UPLOAD_BREAKS:
            return await self._break(call, session, fault, finalize=finalize)
        received = await self._receive(call, session, finalize=finalize)
        if not finalize:
            session.received = received
            return Reply(200, headers=_status(session))
        return self._finalize(call, session, received, fault)

    async def multipart(self, call: Call) -> Reply:
        project = call.project()
        metadata, data, mime_type = await _read_parts(call)
        wanted = _read_wanted({"X-Goog-Upload-Header-Content-Type": mime_type}, metadata, project)
        fault = self._faults.next("upload")
        if fault in UPLOAD_BREAKS:
            return UPLOAD_BREAKS[fault]()
        received = _nothing_yet(wanted)
        received.add(data, keep=self._keep_bytes)
        session = _Session(wanted, self._clock(), fault)
        return replace(self._finalize(call, session, received, fault), headers={})

    def _session(self, call: Call) -> _Session:
        session = self._sessions.get(call.request.query.get("upload_id", ""))
        if session is None or self._clock() >= session.started_s + LIFE_S:
            raise Refused(session_missing())
        return session

    def _due(self, session: _Session) -> str | None:
        """The fault of the upload; once that was met, whatever stands by then."""
        return self._faults.standing("upload") if session.faulted else session.fault

    async def _break(self, call: Call, session: _Session, fault: str, *, finalize: bool) -> Reply:
        """Take the bytes and keep half of them, or forget the session with all that it has."""
        data = b"".join([part async for part in call.chunks()])
        self._check_chunk(call, session, len(data), finalize=finalize)
        session.faulted = True
        if fault == "upload_half":
            session.received.add(data[: len(data) // 2], keep=self._keep_bytes)
        else:
            self._sessions.pop(call.request.query["upload_id"], None)
        return UPLOAD_BREAKS[fault]()

    async def _receive(self, call: Call, session: _Session, *, finalize: bool) -> _Received:
        """The session's bytes with those of this request. Raises `Refused`, and then nothing has changed."""
        before_bytes, received = session.received.size_bytes, session.received.copy()
        async for part in call.chunks():
            received.add(part, keep=self._keep_bytes)
        self._check_chunk(call, session, received.size_bytes - before_bytes, finalize=finalize)
        return received

    def _check_chunk(self, call: Call, session: _Session, size_bytes: int, *, finalize: bool) -> None:
        if session.final:
            raise _bad_bytes(session, "The upload has already been finalized.")
        offset = call.request.headers.get("X-Goog-Upload-Offset", "")
        if offset != str(session.received.size_bytes):
            raise _bad_bytes(session, f"Expected X-Goog-Upload-Offset {session.received.size_bytes}, got {offset!r}.")
        if not finalize and (size_bytes % GRANULARITY_BYTES or not size_bytes):
            raise _bad_bytes(session, f"A chunk that is not the last must be a multiple of {GRANULARITY_BYTES} bytes.")
        total, declared = session.received.size_bytes + size_bytes, session.wanted.size_bytes
        if declared is not None and (total > declared or (finalize and total != declared)):
            session.final = finalize
            raise _bad_bytes(session, f"{total} bytes were received, and {declared} declared.")

    def _finalize(self, call: Call, session: _Session, received: _Received, fault: str | None) -> Reply:
        if fault in UPLOAD_REPLIES:
            session.faulted = True
            reply = UPLOAD_REPLIES[fault](session.wanted.file_id)
            session.final = 400 <= reply.status < 500  # after a 5xx or a reset the client may try the same URL again
            return replace(reply, headers=_status(session))
        session.final = True
        file = _to_file(session.wanted, received)
        session.received = replace(received, kept=[], text=None)
        if refusal := self._keep(file, call.origin):
            return replace(refusal, headers=_status(session))
        self._books.uploads.append(_entry(file))
        answer = file.to_json()
        delivery = UPLOAD_SPOILERS[fault](file, answer) if fault else "whole"
        return replace(json_reply({"file": answer}, headers=_status(session)), delivery=delivery)

    def _keep(self, file: StoredFile, origin: str) -> Reply | None:
        """Put the file into the store, or say why not."""
        if not is_uploadable(file.mime_type):
            return rpc_error(400, "INVALID_ARGUMENT", f"Unsupported MIME type: {file.mime_type}")
        if not self._store.has_room(file.project, file.size_bytes):
            return storage_full(self._store.capacity_bytes)
        return None if self._store.add(file, origin) else _taken(file)

    def _forget_old(self) -> None:
        """Sessions are in the order of their start."""
        while self._sessions:
            upload_id, session = next(iter(self._sessions.items()))
            if self._clock() < session.started_s + LIFE_S:
                return
            del self._sessions[upload_id]


def _read_wanted(headers: Mapping[str, str], body: bytes, project: str) -> _Wanted:
    meta = _read_metadata(body)
    name, display_name = meta.get("name"), meta.get("display_name")
    if name is not None and not (isinstance(name, str) and FILE_ID.fullmatch(name.removeprefix("files/"))):
        raise invalid_rpc(
            f"Invalid file name {name!r}: lowercase letters, digits and dashes, at most 40, no dash at an end."
        )
    if name is not None and not name.startswith("files/"):
        raise invalid_rpc(f"Invalid file name {name!r}: it must begin with 'files/'.")
    if display_name is not None and not (isinstance(display_name, str) and len(display_name) <= 512):
        raise invalid_rpc("Invalid display name: a string of at most 512 characters.")
    mime_type = headers.get("X-Goog-Upload-Header-Content-Type") or meta.get("mime_type") or ""
    size_bytes = _declared_size(headers.get("X-Goog-Upload-Header-Content-Length"), meta.get("size_bytes"))
    return _Wanted(project, (name or "").removeprefix("files/"), display_name, str(mime_type), size_bytes)


def _read_metadata(body: bytes) -> dict[str, Any]:
    """The members of `file`, in snake_case; proto JSON takes both spellings."""
    try:
        given = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as cause:
        raise invalid_rpc(f"Invalid JSON payload received. {cause}") from cause
    if not isinstance(given, dict) or not isinstance(given.get("file", {}), dict):
        raise invalid_rpc("Invalid JSON payload received. Expected an object.")
    for key in given.keys() - {"file"}:
        raise _unknown_name(key, "")
    meta = {_SNAKE.get(key, key): value for key, value in given.get("file", {}).items()}
    for key in meta.keys() - _WRITABLE:
        raise _unknown_name(key, "file")
    return meta


def _unknown_name(key: str, where: str) -> Refused:
    place = f" at '{where}'" if where else ""
    message = f'Invalid JSON payload received. Unknown name "{key}"{place}: Cannot find field.'
    violation = {"field": where, "description": message}
    details = [{"@type": rpc_type("BadRequest"), "fieldViolations": [violation]}]
    return Refused(rpc_error(400, "INVALID_ARGUMENT", message, details))


def _declared_size(header: str | None, member: Any) -> int | None:
    sizes = {str(given) for given in (header, member) if given is not None}
    if len(sizes) > 1:
        raise invalid_rpc(f"X-Goog-Upload-Header-Content-Length {header} and file.size_bytes {member} differ.")
    if not sizes:
        return None
    size = sizes.pop()
    if not re.fullmatch(r"[0-9]{1,18}", size) or int(size) > _MAX_FILE_BYTES:
        raise invalid_rpc(f"Invalid size {size}: a file has at most {_MAX_FILE_BYTES} bytes.")
    return int(size)


def _start_headers(call: Call, upload_id: str) -> dict[str, str]:
    url = f"{call.origin}/upload/{call.version}/files?upload_id={upload_id}&upload_protocol=resumable"
    return {
        "X-Goog-Upload-Status": "active",
        "X-Goog-Upload-URL": url,
        "X-Goog-Upload-Control-URL": url,
        "X-Goog-Upload-Chunk-Granularity": str(GRANULARITY_BYTES),
        "X-GUploader-UploadID": upload_id,
    }


def _status(session: _Session) -> dict[str, str]:
    return {
        "X-Goog-Upload-Status": "final" if session.final else "active",
        "X-Goog-Upload-Size-Received": str(session.received.size_bytes),
    }


def _bad_bytes(session: _Session, message: str) -> Refused:
    return Refused(replace(rpc_error(400, "INVALID_ARGUMENT", message), headers=_status(session)))


def _nothing_yet(wanted: _Wanted) -> _Received:
    return _Received(text=Spool() if wanted.mime_type in BATCH_TYPES else None)


def _to_file(wanted: _Wanted, received: _Received) -> StoredFile:
    if received.text is not None:  # a request that broke off may have left more
        received.text.cut(received.size_bytes)
    return StoredFile(
        file_id=wanted.file_id,
        project=wanted.project,
        mime_type=wanted.mime_type,
        display_name=wanted.display_name,
        size_bytes=received.size_bytes,
        sha256=received.hash.hexdigest(),
        types=types_of(received.head),
        data=b"".join(received.kept) if received.kept else None,
        text=received.text,
    )


def _taken(file: StoredFile) -> Reply:
    """As captured: no `status`."""
    return json_reply({"error": {"message": f"files/{file.file_id} already exists.", "code": 409}}, 409)


def _entry(file: StoredFile) -> Upload:
    return Upload(f"files/{file.file_id}", file.sha256, file.size_bytes, file.display_name, file.mime_type)


async def _read_parts(call: Call) -> tuple[bytes, bytes, str]:
    """Metadata, content and the content's type, of a multipart/related body."""
    if not call.request.headers.get("Content-Type", "").startswith("multipart/related"):
        raise invalid_rpc("A multipart upload needs the Content-Type multipart/related.")
    try:
        reader = aiohttp.MultipartReader(call.request.headers, call.request.content)
        parts = [(bytes(await part.read()), part.headers.get("Content-Type", "")) async for part in reader]  # type: ignore[union-attr]
    except (ValueError, AssertionError) as cause:
        raise invalid_rpc(f"Malformed multipart body: {cause}") from cause
    if len(parts) != 2:
        raise invalid_rpc(f"A multipart upload has two parts, got {len(parts)}.")
    return parts[0][0], parts[1][0], parts[1][1]
