"""Jobs of the Batch API, each call repeated until it is answered: what is paid for must not hang on one 503."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

from pixscribe.batch_api import ENDED, INPUT_TYPE, Batch, BatchClient
from pixscribe.breaker import Breaker
from pixscribe.config import RunConfig
from pixscribe.errors import (
    AnswerError,
    AuthenticationError,
    ModelUnknown,
    OutageError,
    PermissionRefused,
    QuotaExhausted,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
    StorageFull,
    UploadError,
)
from pixscribe.gemini import File
from pixscribe.limits import Limiter
from pixscribe.retry import RetryPolicy
from pixscribe.uploads import Uploader

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 2.0
"""Before the first look at a new job; from then on half as long again each time."""


@dataclass(frozen=True, slots=True)
class JobInput:
    """The requests of a job, in the form in which `Uploader` takes what it uploads."""

    data: bytes
    sent_sha256: str
    sent_mime_type: str = INPUT_TYPE


class BatchJobs:
    """The jobs of one key, and of one model."""

    def __init__(
        self,
        client: BatchClient,
        uploader: Uploader,
        limiter: Limiter,
        policy: RetryPolicy,
        breaker: Breaker,
        config: RunConfig,
    ) -> None:
        self._client = client
        self._uploader = uploader
        self._limiter = limiter
        self._policy = policy
        self._breaker = breaker
        self._model = config.model.name
        self._poll_s = config.batch.poll_s

    async def upload(self, content: JobInput, display_name: str) -> File:
        """The file of the requests, to be kept until the job is over: see `let_go`. Raises `RunError`."""
        self._uploader.hold(content.sent_sha256)
        try:
            file, _ = await self._uploader.upload(content, display_name)
        except StorageFull as error:
            raise QuotaExhausted("the Files API's storage is full, and nothing in it is ours to delete") from error
        except UploadError as error:
            raise OutageError(f"the requests of a batch could not be uploaded: {error}") from error
        return file

    def hold(self, input_sha256: str) -> None:
        """Keep the input of a job that an earlier process created."""
        self._uploader.hold(input_sha256)

    async def let_go(self, input_sha256: str) -> None:
        """Delete the input of a job that is over. What cannot be deleted goes by itself after two days."""
        self._uploader.let_go([input_sha256])
        try:
            await self._call(lambda: self._uploader.delete(input_sha256))
        except (RequestRefused, RateLimited, ServerUnavailable, AnswerError) as error:
            logger.info("the input of a batch could not be deleted: %s", error)

    async def create(self, display_name: str, content: JobInput, file: File) -> Batch:
        """Have the job created once, also when the answer is lost on the way.

        Raises `RateLimited` when too much is waiting, `RequestRefused` for bad requests, and `RunError`.
        """
        failures, name = 0, file.name
        while True:
            try:
                if failures and (found := await self.find(display_name)):
                    return found
                return await self._call(partial(self._client.create, self._model, display_name, name))
            except PermissionRefused as error:
                name = (await self._upload_again(content, display_name, file, error, failures)).name
                failures += 1
            except RequestRefused as error:
                if error.status == 404:
                    raise ModelUnknown(f"model.name: the service has no batches of this model ({error})") from error
                raise
            except (ServerUnavailable, AnswerError) as error:
                failures += 1
                await self._pause_after(failures, error)

    async def find(self, display_name: str) -> Batch | None:
        """The job of that name, if it was ever created. Raises `RunError`."""
        try:
            return await self._policy.call(lambda _: self._call(lambda: self._client.find(display_name)))
        except PermissionRefused as error:
            raise AuthenticationError(f"GEMINI_API_KEY may not list batches ({error})") from error
        except (RequestRefused, RateLimited, ServerUnavailable, AnswerError) as error:
            raise OutageError(f"batches cannot be listed: {error}") from error

    async def wait(self, name: str, *, is_new: bool) -> Batch | None:
        """The job when it is over, which may take days; None if it is gone. Raises `RunError`."""
        pause_s = min(FIRST_PAUSE_S, self._poll_s) if is_new else 0.0
        while True:
            await self._policy.sleep(pause_s)
            pause_s = min(self._poll_s, max(1.5 * pause_s, FIRST_PAUSE_S))
            try:
                batch = await self._call(lambda: self._client.get(name))
            except PermissionRefused as error:
                raise AuthenticationError(f"GEMINI_API_KEY may not look at {name} ({error})") from error
            except RequestRefused as error:
                if error.status != 404:
                    raise OutageError(f"{name} cannot be looked at: {error}") from error
                return None
            except (RateLimited, ServerUnavailable, AnswerError) as error:
                logger.info("%s: no look at it: %s", name, error)
                continue
            if batch.state in ENDED:
                return batch

    async def download(self, batch: Batch, file: BinaryIO, *, lines: int) -> bool:
        """Write the output to `file`, whole if it can be had so; False if the service does not have it any more.

        Raises `OutageError`.
        """
        assert batch.output is not None
        for is_last in (False, True):
            try:
                await self._policy.call(lambda _: self._download(batch.output or "", file))
            except (PermissionRefused, RequestRefused):
                return False
            except (RateLimited, ServerUnavailable, AnswerError) as error:
                if error.status in (403, 404):
                    return False
                raise OutageError(f"the output of {batch.name} cannot be had: {error}") from error
            if is_last or _count_lines(file) >= lines:
                return True
            logger.info("the output of %s lacks lines, and is downloaded once more", batch.name)
        return True

    async def _download(self, output: str, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        try:
            await self._call(lambda: self._client.download(output, file))
        except RequestRefused as error:
            if error.status in (403, 404):  # asked for again: what is given up here is paid for again
                raise ServerUnavailable(str(error), status=error.status) from error
            raise

    async def _upload_again(
        self, content: JobInput, display_name: str, file: File, refusal: PermissionRefused, failures: int
    ) -> File:
        """A job may have waited for its turn until its input expired."""
        if failures:
            raise AuthenticationError(f"GEMINI_API_KEY may not create batches ({refusal})") from refusal
        try:
            return await self._uploader.upload_again(content, display_name, file)
        except UploadError as error:
            raise OutageError(f"the requests of a batch could not be uploaded: {error}") from error

    async def _pause_after(self, failures: int, error: ServerUnavailable | AnswerError) -> None:
        if failures >= self._policy.max_attempts:
            raise OutageError(f"a batch could not be created: {error}") from error
        pause_s = min(self._policy.max_wait_s, 2.0**failures)
        logger.warning("the creation of a batch was not answered (%s); looking for it in %.1f s", error, pause_s)
        await self._policy.sleep(pause_s)

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        async def attempt() -> T:
            async with self._limiter.transfer():
                self._breaker.check()
                return await call()

        return await self._breaker.call(attempt)


def _count_lines(file: BinaryIO) -> int:
    file.seek(0)
    return sum(1 for _ in file)
