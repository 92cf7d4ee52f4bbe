"""Images in the Files API: each content once, found again by a name that comes from the content."""

from pixscribe.concurrency import SingleFlight
from pixscribe.errors import ApiError, AuthenticationError, PermissionRefused, UploadError
from pixscribe.gemini import File, GeminiClient, upload_file
from pixscribe.limits import Limiter
from pixscribe.progress import Tally
from pixscribe.retry import RetryPolicy
from pixscribe.types import PreparedImage


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

    async def upload_again(self, image: PreparedImage, display_name: str, gone: str) -> File:
        """The image's file, after the one with the URI `gone` turned out to be deleted or expired."""
        known, _ = await self.upload(image, display_name)
        if known.uri == gone:
            self._files.forget(image.sent_sha256)
        file, _ = await self.upload(image, display_name)
        return file

    async def _upload(self, image: PreparedImage, display_name: str) -> File:
        try:
            file = await self._policy.call(lambda _: self._attempt(image, display_name))
        except PermissionRefused as error:
            raise AuthenticationError(f"GEMINI_API_KEY may not upload files ({error})") from error
        except ApiError as error:
            raise UploadError(f"upload failed: {error}") from error
        self._tally.uploads += 1
        return file

    async def _attempt(self, image: PreparedImage, display_name: str) -> File:
        async with self._limiter.transfer():
            file = await upload_file(
                self._client,
                image.data,
                name=image.sent_sha256[:40],
                mime_type=image.sent_mime_type,
                display_name=display_name[:512],
            )
        return _checked(file, image)


def _checked(file: File, image: PreparedImage) -> File:
    if file.sha256 and file.sha256 != image.sent_sha256:
        raise UploadError(f"the Files API holds other bytes under {file.name} (sha256 {file.sha256})")
    if file.state != "ACTIVE":
        raise UploadError(f"the Files API has {file.name} in state {file.state}")
    return file
