"""What a job is made of while it is under way, and the reasons for which a request of it comes to nothing."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from pixscribe.asking import Answer, Renew, Trial
from pixscribe.batch_store import BatchRecord
from pixscribe.errors import ApiError, ImageError, PermissionRefused, ServerUnavailable, UploadError
from pixscribe.gemini import ImagePart
from pixscribe.prompts import Question

CUT = "the answer was cut off; its complete part is kept"


@dataclass(slots=True, eq=False)
class Asked:
    """A question on its way through jobs. `image` is None for one of an earlier process, until its image is read."""

    request_key: str
    question: Question
    shard: str
    image: ImagePart | None = None
    renew: Renew | None = None
    uploaded_s: float = 0.0
    """When its file was last seen, by the asker's clock."""
    is_gone: bool = False
    trial: Trial = field(default_factory=Trial)
    answered: "asyncio.Future[Answer] | None" = None
    """Set when somebody waits for it."""
    body: bytes = b""
    tokens: int = 0
    most_usd: float = 0.0

    def tell(self, answer: Answer) -> None:
        """Give the answer to whoever waits."""
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits that there will be no answer."""
        if self.answered is not None and not self.answered.done():
            self.answered.set_exception(error)


@dataclass(slots=True, eq=False)
class Job:
    """A job and what it is asked, by request key."""

    record: BatchRecord
    asked: dict[str, Asked]
    tokens: int = 0
    money: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Holds what the job may cost, until it is closed."""
    spent: list[float] = field(default_factory=list)


def missing() -> ServerUnavailable:
    """Why a request has no answer that its job does not mention."""
    return ServerUnavailable("the job's output has no line for it", status=200)


def lost(state: str, reason: str) -> ServerUnavailable:
    """Why a request has no answer whose job came to nothing."""
    said = f"its batch job ended as {state}: {reason}".rstrip(": ")
    return ServerUnavailable(said, code="timeout" if state == "EXPIRED" else "server_error", status=200)


def lasting(error: ApiError | None) -> ImageError | None:
    """As it stands in a row. A file that is always gone says nothing of the image, so other runs ask again."""
    return (
        UploadError(f"its file was gone when the job ran: {error}") if isinstance(error, PermissionRefused) else error
    )
