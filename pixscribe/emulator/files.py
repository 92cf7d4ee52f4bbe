"""The Files API apart from uploading: the store, and get, list, delete."""

import base64
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
from pixscribe.emulator.paging import take_page
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
from pixscribe.emulator.spool import Spool
from pixscribe.emulator.vision import Scene

LIFE_S = 48 * 3600
_LONGEST_ID = 40
_FILE_PATH = re.compile(r"/v1(?:beta)?/files/([^/:]+)")
FILE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(slots=True)
class StoredFile:
    """`data` is dropped once the file was looked at, or never kept; `types` are the names its content may go by.

    `text` is the content of what can be read by lines. A `generated` file is the output of a batch, and
    `first_download` answers the first who wants it.
    """

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
    text: Spool | None = field(default=None, repr=False)
    generated: bool = False
    first_download: Reply | None = None

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
            "source": "GENERATED" if self.generated else "UPLOADED",
        }
        if self.generated:
            answer["downloadUri"] = f"{self.uri}:download?alt=media"
        if self.display_name is None:
            del answer["displayName"]
        if self.state == "FAILED":
            answer["error"] = {"code": 13, "message": "The file could not be processed."}
        return answer


class FileStore:
    """Names are one space for all projects; what another project owns looks as if it were not there.

    Each project has `capacity_bytes`; the caller asks for room before it adds. Outputs of batches
    are added in any case.
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
        file = self._own(call, "GetFileRequest")
        answer = file.to_json()
        if file.gets_until_active:
            file.gets_until_active -= 1
            file.state = "PROCESSING" if file.gets_until_active else "ACTIVE"
        return json_reply(answer)

    async def delete(self, call: Call) -> Reply:
        self._forget(self._own(call, "DeleteFileRequest"))
        return json_reply({})

    async def list(self, call: Call) -> Reply:
        """Newest first."""
        project = call.project()
        self._sweep()
        files, more = take_page((file for file in reversed(self._files.values()) if file.project == project), call)
        return json_reply({"files": [file.to_json() for file in files], **more} if files else {})

    async def download(self, call: Call) -> Reply:
        """Needs `?alt=media`, as both forms of the URL in the documentation have it."""
        file = self.named(call.target, call.project())
        if not file.generated:
            raise invalid_rpc("Only generated files can be downloaded.")
        if call.request.query.get("alt") != "media":
            raise invalid_rpc("The content of a file is only given with alt=media.")
        first, file.first_download = file.first_download, None
        if first is not None and first.status != 200:
            return first
        delivery = "whole" if first is None else first.delivery
        return Reply(200, content_type="application/octet-stream", text=file.text, delivery=delivery)

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

    def named(self, file_id: str, project: str) -> StoredFile:
        """Raises `Refused` for what `find` does not find."""
        file = self.find(file_id, project)
        if file is None:  # 403, not 404, is how the Files API says "no such file"
            raise Refused(rpc_error(403, "PERMISSION_DENIED", file_gone_message(file_id)))
        return file

    def forget(self, file: StoredFile) -> None:
        """Delete it, if that has not happened yet."""
        if self._files.get(file.file_id) is file:
            self._forget(file)

    def used(self, uri: str, host: str, project: str) -> StoredFile | None:
        """The file that a question names; None if the URI is not one of ours, who are `host`. Raises `Refused`."""
        parts = urlsplit(uri)
        match = _FILE_PATH.fullmatch(parts.path)
        if match is None or parts.netloc != host:
            return None
        file_id = match[1]
        file = self.find(file_id, project)
        if file is None:
            raise Refused(interactions_error(403, "permission_denied", file_gone_message(file_id)))
        if file.state != "ACTIVE":
            raise invalid(file_inactive_message(file_id), "failed_precondition")
        return file

    def _own(self, call: Call, request: str) -> StoredFile:
        """The outputs of batches have names that the service itself finds too long (googleapis/python-genai#1759)."""
        project = call.project()
        if len(call.target) > _LONGEST_ID:
            message = (
                f"* {request}.name: File ID (name excluding 'files/') cannot be more than {_LONGEST_ID} characters.\n"
            )
            raise invalid_rpc(message)
        return self.named(call.target, project)

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
