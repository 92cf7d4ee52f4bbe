"""Images in the Files API: each content once, found again by a name that comes from the content."""

from pixscribe.concurrency import SingleFlight
from pixscribe.errors import ApiError, AuthenticationError, FileConflict, PermissionRefused, UploadError
from pixscribe.gemini import File, GeminiClient, upload_file
from pixscribe.limits import Limiter
from pixscribe.progress import Tally
from pixscribe.retry import RetryPolicy
from pixscribe.types import PreparedImage

PROCESSING_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


class Uploader:
    """Uploads prepared images, at most once per content and process."""

    def __init__(self, client: GeminiClient, limiter: Limiter, policy: RetryPolicy, tally: Tally) -> None:
        self._client = client
        self._limiter = limiter
        self._policy = policy
        self._tally = tally
        self._files = SingleFlight[File]()

    async def upload(self, image: PreparedImage, display_name: str) -> tuple[File, bool]:
        """The image's file, and whether it was uploaded just now. Raises `UploadError`."""
        return await self._files.once(image.sent_sha256, lambda: self._upload(image, display_name))

    async def upload_again(self, image: PreparedImage, display_name: str, gone: File) -> File:
        """The image's file, after `gone` turned out to be deleted or expired; once for all who find that out."""
        known, _ = await self.upload(image, display_name)
        if known is gone:
            self._files.forget(image.sent_sha256)
        file, _ = await self.upload(image, display_name)
        return file

    async def _upload(self, image: PreparedImage, display_name: str) -> File:
        try:
            file = await self._upload_under(image, display_name, image.sent_sha256[:40])
        except PermissionRefused as error:
            raise AuthenticationError(f"GEMINI_API_KEY may not upload files ({error})") from error
        except ApiError as error:
            raise UploadError(f"upload failed: {error}") from error
        self._tally.uploads += 1
        return file

    async def _upload_under(self, image: PreparedImage, display_name: str, name: str) -> File:
        try:
            return await self._policy.call(lambda _: self._attempt(image, display_name, name))
        except FileConflict:
            # the name of something deleted may stay taken; the digest's other end is as good a name
            other = image.sent_sha256[-40:]
            if name == other:
                raise
            return await self._upload_under(image, display_name, other)

    async def _attempt(self, image: PreparedImage, display_name: str, name: str) -> File:
        async with self._limiter.transfer():
            file = await upload_file(
                self._client, image.data, name=name, mime_type=image.sent_mime_type, display_name=display_name[:512]
            )
        return _checked(await self._processed(file), image)

    async def _processed(self, file: File) -> File:
        """Images are usually ready at once; those that are not are asked after with growing pauses, for 25 s in all."""
        for pause_s in PROCESSING_PAUSES_S:
            if file.state != "PROCESSING":
                break
            await self._policy.sleep(pause_s)
            async with self._limiter.transfer():
                file = await self._client.get_file(file.name)
        return file


def _checked(file: File, image: PreparedImage) -> File:
    if file.sha256 and file.sha256 != image.sent_sha256:
        raise UploadError(f"the Files API holds other bytes under {file.name} (sha256 {file.sha256})")
    if file.state != "ACTIVE":
        raise UploadError(f"the Files API has {file.name} in state {file.state}")
    return file
