"""Images in the Files API: each content once, found again by a name that comes from the content."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from pixscribe.breaker import Breaker
from pixscribe.concurrency import SingleFlight
from pixscribe.errors import (
    ApiError,
    AuthenticationError,
    FileConflict,
    OutageError,
    PermissionRefused,
    StorageFull,
    UploadError,
)
from pixscribe.gemini import File, GeminiClient, Upload, open_transport
from pixscribe.limits import Limiter
from pixscribe.progress import Tally
from pixscribe.retry import RetryPolicy

logger = logging.getLogger(__name__)

PROCESSING_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
ROOM_BYTES = 1024**3
"""How much is deleted at a time when the 20 GB of a project are full: of 20 files, the oldest one."""


class Sendable(Protocol):
    """A `PreparedImage`, or what else is uploaded: bytes, their sha256 (hex) and their type."""

    @property
    def data(self) -> bytes: ...
    @property
    def sent_sha256(self) -> str: ...
    @property
    def sent_mime_type(self) -> str: ...


class Uploader:
    """Uploads prepared images, at most once per content and process.

    `looks_first` asks whether the file is there before its bytes are sent: worth it when an earlier run, or an earlier
    process of this one, may have uploaded the same images. An impatient call does not wait for an outage to end.
    """

    def __init__(
        self,
        client: GeminiClient,
        limiter: Limiter,
        policy: RetryPolicy,
        breaker: Breaker,
        tally: Tally,
        *,
        looks_first: bool = False,
    ) -> None:
        self._client = client
        self._limiter = limiter
        self._policy = policy
        self._breaker = breaker
        self._tally = tally
        self._looks_first = looks_first
        self._files = SingleFlight[File]()
        self._in_use = Counter[str]()
        self._making_room = asyncio.Lock()
        self._rooms_made = 0

    async def upload(self, image: Sendable, display_name: str, *, patient: bool = True) -> tuple[File, bool]:
        """The image's file, and whether it was uploaded just now.

        Raises `UploadError`, `StorageFull` if there is no room and nothing of ours to delete, and, if impatient,
        `OutageError`.
        """
        return await self._files.once(image.sent_sha256, lambda: self._upload(image, display_name, patient))

    async def upload_again(self, image: Sendable, display_name: str, gone: File) -> File:
        """The image's file, after `gone` turned out to be deleted or expired; once for all who find that out."""
        known, _ = await self.upload(image, display_name)
        if known is gone:
            self._files.forget(image.sent_sha256)
        file, _ = await self.upload(image, display_name)
        return file

    def hold(self, sent_sha256: str) -> None:
        """Keep the file of this content from being deleted to make room, until it is let go as often."""
        self._in_use[sent_sha256] += 1

    def let_go(self, contents: Iterable[str]) -> None:
        """Forget files that were held: what is needed again later is found again by its name."""
        for sent_sha256 in contents:
            self._in_use[sent_sha256] -= 1
            if self._in_use[sent_sha256] <= 0:
                del self._in_use[sent_sha256]
                self._files.forget(sent_sha256)

    async def delete(self, sent_sha256: str) -> None:
        """Delete the file of this content, which nobody needs any more, in one attempt. Raises `ApiError`."""
        self._files.forget(sent_sha256)
        await self._client.delete_file(sent_sha256[:40])

    async def _upload(self, image: Sendable, display_name: str, patient: bool) -> File:
        try:
            if self._looks_first and (found := await self._find(image)):
                return found
            file = await self._upload_under(image, display_name, image.sent_sha256[:40], patient)
        except StorageFull:
            raise
        except PermissionRefused as error:
            raise AuthenticationError(f"GEMINI_API_KEY may not upload files ({error})") from error
        except ApiError as error:
            raise UploadError(f"upload failed: {error}") from error
        self._tally.uploads += 1
        return file

    async def _find(self, image: Sendable) -> File | None:
        """The file, if an earlier process has uploaded it. Whatever speaks against it, uploading will tell."""
        try:
            async with self._limiter.transfer():
                return _checked(await self._client.get_file(image.sent_sha256[:40]), image)
        except (ApiError, UploadError):
            return None

    async def _upload_under(self, image: Sendable, display_name: str, name: str, patient: bool) -> File:
        upload = Upload(
            self._client, image.data, name=name, mime_type=image.sent_mime_type, display_name=display_name[:512]
        )
        try:
            return await self._policy.call(
                lambda _: self._breaker.call(lambda: self._attempt(upload, image), patient=patient)
            )
        except FileConflict:
            # the name of something deleted may stay taken; the digest's other end is as good a name
            other = image.sent_sha256[-40:]
            if name == other:
                raise
            return await self._upload_under(image, display_name, other, patient)

    async def _attempt(self, upload: Upload, image: Sendable) -> File:
        rooms_made = self._rooms_made
        try:
            file = await self._transfer(upload)
        except StorageFull:
            await self._make_room(rooms_made)
            file = await self._transfer(upload)
        file = await self._processed(file)
        if file.state == "FAILED":  # under its name nothing else could be uploaded for two days
            await delete_files(self._client, [file])
        return _checked(file, image)

    async def _transfer(self, upload: Upload) -> File:
        async with self._limiter.transfer():
            self._breaker.check()
            return await upload.attempt()

    async def _processed(self, file: File) -> File:
        """Images are usually ready at once; those that are not are asked after with growing pauses, for 25 s in all."""
        for pause_s in PROCESSING_PAUSES_S:
            if file.state != "PROCESSING":
                break
            await self._policy.sleep(min(pause_s, self._policy.max_wait_s))
            async with self._limiter.transfer():
                file = await self._client.get_file(file.name)
        return file

    async def _make_room(self, rooms_made: int) -> None:
        """Delete the oldest of our files that no shard in flight needs. What others need again, they upload again.

        Once for all who have found the storage full since `rooms_made` was the number of times.
        """
        async with self._making_room:
            if self._rooms_made != rooms_made:
                return
            self._rooms_made += 1
            in_use = {name for sha256 in self._in_use for name in (sha256[:40], sha256[-40:])}
            files = [file async for file in self._client.list_files() if is_ours(file) and file.name not in in_use]
            freed_bytes = await delete_files(self._client, files, ROOM_BYTES)
            logger.warning("the Files API's storage is full: %d bytes of our own files were deleted", freed_bytes)


def is_ours(file: File) -> bool:
    """Whether pixscribe uploaded it: nobody else names files by the sha256 of their content."""
    return bool(file.sha256) and file.name in (file.sha256[:40], file.sha256[-40:])


async def describe_files(base_url: str, api_key: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Every file of the project, and what ours and the others' come to."""
    async with _client(base_url, api_key) as client:
        files = [file async for file in client.list_files()]
    described = [_describe(file) for file in files]
    totals = {}
    for whose, ours in (("ours", True), ("others'", False)):
        mine = [each for each in described if each["is_ours"] is ours]
        expiries = sorted(each["expires_at"] for each in mine)
        totals[whose] = {
            "files": len(mine),
            "size_bytes": sum(each["size_bytes"] for each in mine),
            "first_expires_at": expiries[0] if expiries else None,
            "last_expires_at": expiries[-1] if expiries else None,
        }
    return described, totals


async def delete_ours(base_url: str, api_key: str) -> tuple[int, int]:
    """Delete every file of ours; returns how many there were, and their bytes."""
    deleted: list[File] = []
    async with _client(base_url, api_key) as client:
        files = [file async for file in client.list_files() if is_ours(file)]
        size_bytes = await delete_files(client, files, on_delete=deleted.append)
    return len(deleted), size_bytes


@asynccontextmanager
async def _client(base_url: str, api_key: str) -> AsyncIterator[GeminiClient]:
    """For the command line: what goes wrong here ends the command. Raises `RunError`."""
    try:
        async with open_transport(base_url, concurrency=4) as transport:
            yield GeminiClient(transport, base_url=base_url, api_key=api_key, timeout_s=60)
    except PermissionRefused as error:
        raise AuthenticationError(f"GEMINI_API_KEY may not use the Files API ({error})") from error
    except (ApiError, UploadError) as error:
        raise OutageError(f"{base_url}: {error}") from error


def _describe(file: File) -> dict[str, Any]:
    return {
        "name": f"files/{file.name}",
        "is_ours": is_ours(file),
        "size_bytes": file.size_bytes,
        "mime_type": file.mime_type,
        "state": file.state,
        "expires_at": file.expires_at.isoformat(timespec="seconds") if file.expires_at else "",
    }


async def delete_files(
    client: GeminiClient,
    files: Iterable[File],
    enough_bytes: float = float("inf"),
    on_delete: Callable[[File], None] = lambda _: None,
) -> int:
    """Delete files, those first that expire first, until `enough_bytes` are freed; returns how many bytes were.

    A file that cannot be deleted is passed over: it may be gone, or will expire by itself.
    """
    freed_bytes = 0
    for file in sorted(files, key=lambda file: file.expires_at or datetime.max.replace(tzinfo=UTC)):
        if freed_bytes >= enough_bytes:
            break
        try:
            await client.delete_file(file.name)
        except ApiError as error:
            logger.warning("files/%s could not be deleted: %s", file.name, error)
            continue
        freed_bytes += file.size_bytes
        on_delete(file)
    return freed_bytes


def _checked(file: File, image: Sendable) -> File:
    if file.sha256 and file.sha256 != image.sent_sha256:
        raise UploadError(f"the Files API holds other bytes under {file.name} (sha256 {file.sha256})")
    if file.state != "ACTIVE":
        raise UploadError(f"the Files API has {file.name} in state {file.state}: {file.error}".rstrip(": "))
    return file
