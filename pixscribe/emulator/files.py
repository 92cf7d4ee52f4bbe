"""The Files API apart from uploading: the store, and get, list, delete."""

import base64
import binascii
import random
import re
import string
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pixscribe.emulator.call import Call
from pixscribe.emulator.replies import (
    Refused,
    Reply,
    file_gone_message,
    file_inactive_message,
    interactions_error,
    invalid,
    invalid_rpc,
    json_reply,
    rpc_error,
)
from pixscribe.emulator.vision import Scene

LIFE_S = 48 * 3600
_DEFAULT_PAGE, _LARGEST_PAGE = 10, 100
_FILE_PATH = re.compile(r"/v1(?:beta)?/files/([^/:]+)")
FILE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(slots=True)
class StoredFile:
    """`data` is dropped once the file was looked at, or never kept; `types` are the names its content may go by."""

    file_id: str
    project: str
    mime_type: str
    display_name: str | None
    size_bytes: int
    sha256: str
    types: frozenset[str]
    data: bytes | None
    uri: str = ""
    created_s: float = 0.0
    serial: int = 0
    state: str = "ACTIVE"
    gets_until_active: int = 0
    scene: Scene | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """As the API words it; `sha256Hash` is base64 of the hex digest, not of the digest."""
        answer: dict[str, Any] = {
            "name": f"files/{self.file_id}",
            "displayName": self.display_name,
            "mimeType": self.mime_type,
            "sizeBytes": str(self.size_bytes),
            "createTime": timestamp(self.created_s),
            "updateTime": timestamp(self.created_s),
            "expirationTime": timestamp(self.created_s + LIFE_S),
            "sha256Hash": base64.b64encode(self.sha256.encode()).decode(),
            "uri": self.uri,
            "state": self.state,
            "source": "UPLOADED",
        }
        if self.display_name is None:
            del answer["displayName"]
        if self.state == "FAILED":
            answer["error"] = {"code": 13, "message": "The file could not be processed."}
        return answer


class FileStore:
    """Names are one space for all projects; what another project owns looks as if it were not there.

    Each project has `capacity_bytes`; the caller asks for room before it adds.
    """

    def __init__(self, clock: Callable[[], float], seed: int, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._clock = clock
        # ordered: the first key of a dict whose first thousands were deleted takes as many steps to find
        self._files: OrderedDict[str, StoredFile] = OrderedDict()
        self._held_bytes: Counter[str] = Counter()
        self._serial = 0
        self._random = random.Random(seed)

    async def get(self, call: Call) -> Reply:
        file = self._own(call)
        answer = file.to_json()
        if file.gets_until_active:
            file.gets_until_active -= 1
            file.state = "PROCESSING" if file.gets_until_active else "ACTIVE"
        return json_reply(answer)

    async def delete(self, call: Call) -> Reply:
        self._forget(self._own(call))
        return json_reply({})

    async def list(self, call: Call) -> Reply:
        """Newest first. The token names the last file shown, so that deletions in between lose nothing."""
        project, size = call.project(), _page_size(call)
        before = _read_token(call.request.query.get("pageToken"))
        self._sweep()
        rest = [f for f in reversed(self._files.values()) if f.project == project and f.serial < before]
        answer: dict[str, Any] = {}
        if rest:
            answer["files"] = [file.to_json() for file in rest[:size]]
        if len(rest) > size:
            answer["nextPageToken"] = base64.urlsafe_b64encode(b"%d" % rest[size - 1].serial).decode()
        return json_reply(answer)

    async def download(self, call: Call) -> Reply:
        self._own(call)
        raise invalid_rpc("Only generated files can be downloaded.")

    def has_room(self, project: str, size_bytes: int) -> bool:
        """Whether so much fits beside what the project's live files hold; uploads under way do not count."""
        self._sweep()
        return self._held_bytes[project] + size_bytes <= self.capacity_bytes

    def add(self, file: StoredFile, origin: str) -> bool:
        """False if the name is taken. An empty `file_id` is assigned here."""
        self._sweep()
        file.file_id = file.file_id or self._new_id()
        if file.file_id in self._files:
            return False
        self._serial += 1
        file.serial, file.created_s = self._serial, self._clock()
        file.uri = f"{origin}/v1beta/files/{file.file_id}"
        self._files[file.file_id] = file
        self._held_bytes[file.project] += file.size_bytes
        return True

    def find(self, file_id: str, project: str) -> StoredFile | None:
        """None if missing, expired or another project's."""
        file = self._files.get(file_id)
        alive = file is not None and file.project == project and self._clock() < file.created_s + LIFE_S
        return file if alive else None

    def used(self, uri: str, call: Call, project: str) -> StoredFile | None:
        """The file that a question names; None if the URI is not one of ours. Raises `Refused`."""
        parts = urlsplit(uri)
        match = _FILE_PATH.fullmatch(parts.path)
        if match is None or parts.netloc != call.request.host:
            return None
        file_id = match[1]
        file = self.find(file_id, project)
        if file is None:
            raise Refused(interactions_error(403, "permission_denied", file_gone_message(file_id)))
        if file.state != "ACTIVE":
            raise invalid(file_inactive_message(file_id), "failed_precondition")
        return file

    def _own(self, call: Call) -> StoredFile:
        file = self.find(call.target, call.project())
        if file is None:  # 403, not 404, is how the Files API says "no such file"
            raise Refused(rpc_error(403, "PERMISSION_DENIED", file_gone_message(call.target)))
        return file

    def _sweep(self) -> None:
        """Forget the expired; files are in the order of their making."""
        now_s = self._clock()
        while self._files:
            oldest = next(iter(self._files.values()))
            if now_s < oldest.created_s + LIFE_S:
                return
            self._forget(oldest)

    def _forget(self, file: StoredFile) -> None:
        del self._files[file.file_id]
        self._held_bytes[file.project] -= file.size_bytes

    def _new_id(self) -> str:
        return "".join(self._random.choices(string.ascii_lowercase + string.digits, k=12))


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _page_size(call: Call) -> int:
    given = call.request.query.get("pageSize", str(_DEFAULT_PAGE))
    if not re.fullmatch(r"[0-9]{1,9}", given) or not 1 <= int(given) <= _LARGEST_PAGE:
        raise invalid_rpc(f"Page size must be between 1 and {_LARGEST_PAGE}, got {given!r}.")
    return int(given)


def _read_token(token: str | None) -> float:
    if token is None:
        return float("inf")
    try:
        return int(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError) as cause:
        raise invalid_rpc("Page token is not valid.") from cause
