"""What can go wrong, drawn as a tree.

PixscribeError
├── RunError                stops the run; what is done stays
│   ├── ConfigError             bad usage or configuration           exit 2
│   │   └── ModelUnknown            the service has no such model
│   ├── AuthenticationError     the key is refused                   exit 3
│   ├── QuotaExhausted          a daily quota is used up             exit 3
│   ├── BudgetExhausted         limits.budget_usd is spent           exit 3
│   ├── OutputError             the output cannot be written         exit 3
│   │   ├── LockHeld                a living process has what is locked  exit 3
│   │   └── LockLost                another process has taken the run    exit 3
│   ├── OutageError             the service does not answer          exit 3
│   └── HopelessRun             a whole shard failed for one reason  exit 3
└── ImageError              fails one image or one prompt; becomes a row in exactly one place
    ├── ReadError
    ├── DecodeError             decode_error, too_large, unsupported_type
    ├── UploadError
    └── ApiError                status, code, attempts, retry_after_s
        ├── RateLimited             asked again
        ├── StorageFull             the Files API takes nothing more
        ├── ServerUnavailable       asked again
        │   ├── NotReady                a file that is still processed
        │   └── SessionGone             an upload to be begun anew
        ├── AnswerError             asked again, fewer times
        ├── RequestRefused          not asked again
        │   ├── PermissionRefused       403: a file that is gone, or a key without the right
        │   └── FileConflict            409: a file of that name is there already
        └── Blocked                 not asked again

Decide by class or by `code`; never by searching a message.
"""

from pixscribe.types import ErrorCode


class PixscribeError(Exception):
    """Root of everything this library raises on purpose."""


class RunError(PixscribeError):
    """Stops the run. `exit_code` is what the command line ends with."""

    exit_code = 3


class ConfigError(RunError):
    """The configuration or the command line is wrong; nothing was done."""

    exit_code = 2


class ModelUnknown(ConfigError):
    """The service does not know `model.name`, or has closed it."""


class AuthenticationError(RunError):
    """The service refuses the key."""


class QuotaExhausted(RunError):
    """A daily quota is used up; the run can go on after its reset."""


class BudgetExhausted(RunError):
    """`limits.budget_usd` would be passed by the next request."""


class OutputError(RunError):
    """The output cannot be written or read."""


class LockHeld(OutputError):
    """A living process has the lock."""


class LockLost(OutputError):
    """Another process has taken over the run, because this one seemed to be dead; it must not write any more."""


class OutageError(RunError):
    """The service does not answer, and has not for longer than is waited for."""


class HopelessRun(RunError):
    """Every image of a shard failed for the same reason, so the rest would too."""


class ImageError(PixscribeError):
    """Fails one image or one prompt. `code` is the row's `error_code`."""

    code: ErrorCode = "read_error"

    def __init__(self, message: str, *, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ReadError(ImageError):
    """The bytes could not be read from the source."""

    code: ErrorCode = "read_error"


class DecodeError(ImageError):
    """The bytes are no image that can be sent."""

    code: ErrorCode = "decode_error"


class UploadError(ImageError):
    """The Files API does not hold a usable copy of the image."""

    code: ErrorCode = "upload_failed"


class ApiError(ImageError):
    """The service answered, but not with what was asked for.

    `status` is the HTTP status (None if there was no answer), `attempts` how many requests were sent until this was
    given up, `retry_after_s` the delay the service asked for.
    """

    code: ErrorCode = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.retry_after_s = retry_after_s
        self.attempts = 1


class RateLimited(ApiError):
    """429 for a quota that refills within minutes."""

    code: ErrorCode = "rate_limited"


class StorageFull(ApiError):
    """429 for the 20 GB of a project's files: no waiting helps, only deleting."""

    code: ErrorCode = "upload_failed"


class ServerUnavailable(ApiError):
    """5xx, 408, a broken connection or a timeout: `server_error`, `network_error` or `timeout`."""

    code: ErrorCode = "server_error"

    @property
    def is_outage(self) -> bool:
        """Whether it says something about the service as a whole: a 500 may come from this one image."""
        return self.status in (None, 200, 502, 503, 504)


class NotReady(ServerUnavailable):
    """400 failed_precondition: the file is not ACTIVE yet."""


class SessionGone(ServerUnavailable):
    """The service does not know the upload any more."""


class AnswerError(ApiError):
    """The model's words are not usable: `truncated`, `invalid_json` or `invalid_answer`."""

    code: ErrorCode = "invalid_answer"


class RequestRefused(ApiError):
    """The service will not take this request, however often it is sent."""

    code: ErrorCode = "request_refused"


class PermissionRefused(RequestRefused):
    """403, which is how the Files API says that there is no such file."""


class FileConflict(RequestRefused):
    """409 at the end of an upload: the name is taken."""


class Blocked(ApiError):
    """The service's policy blocks this image or its answer."""

    code: ErrorCode = "blocked"
