"""Requests to a cloud that no library sends for us: signed, tried again within bounds, refused in one line."""

import re
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

CONNECT_S = 10
TIMEOUT_S = 120
"""For one request. The largest is an image of 512 MiB."""
RETRIES = 4
RETRY_S = 60
"""No request is tried again when it has taken so long already: a bucket that is gone must not hold up a run."""


class Changed(OSError):
    """The object is not any more what it was."""


class _Passing(OSError):
    """Worth another try."""


class Rest:
    """Connections to one service. `sign` puts into each request what it is allowed by. Thread-safe."""

    def __init__(self, sign: "Callable[[httpx.Request], None] | None") -> None:
        import httpx

        self._sign = sign
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_S)
        self._client = httpx.Client(timeout=timeout, limits=httpx.Limits(max_connections=None))
        weakref.finalize(self, self._client.close)

    def send(self, method: str, url: str, **options: Any) -> "httpx.Response":
        """The answer, if it is one of success. `content` makes the body; with `stream`, the answer's is left to read.

        Raises FileNotFoundError (404), `Changed` (412), OSError.
        """
        import tenacity

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(RETRIES + 1) | tenacity.stop_after_delay(RETRY_S),
            wait=tenacity.wait_exponential_jitter(initial=0.1, max=5),
            reraise=True,
        )
        return tries(self._send_once, method, url, **options)

    def _send_once(
        self,
        method: str,
        url: str,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        content: "Callable[[], bytes | Iterator[bytes]] | None" = None,
        stream: bool = False,
    ) -> "httpx.Response":
        import httpx

        body = content() if content else None
        headers = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            request = self._client.build_request(method, url, params=params, headers=headers, content=body)
            if self._sign:
                self._sign(request)
        except (httpx.InvalidURL, ValueError) as error:
            raise OSError(f"cannot be asked for: {one_line(error)}") from error
        try:
            answer = self._client.send(request, stream=True)
            if not (answer.is_success and stream):
                answer.read()
        except httpx.HTTPError as error:
            raise _Passing(f"{request.url.copy_with(query=None)}: {one_line(error)}") from error
        return _checked(answer)


def size_of(answer: "httpx.Response") -> int:
    """The bytes that are still to be read. Raises OSError if the answer does not say."""
    try:
        return int(answer.headers["content-length"])
    except (LookupError, ValueError):
        answer.close()
        raise OSError("the service does not say how large the object is") from None


def read_to_end(answer: "httpx.Response", otherwise: Callable[[], bytes]) -> bytes:
    """The body as it was sent, or what `otherwise` gets if the connection breaks."""
    import httpx

    try:
        return b"".join(answer.iter_raw())
    except httpx.HTTPError:
        return otherwise()
    finally:
        answer.close()


def one_line(error: Exception) -> str:
    """The first line of what an exception says, or its name."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _checked(answer: "httpx.Response") -> "httpx.Response":
    if answer.is_success:
        return answer
    said = f"{answer.status_code} {answer.reason_phrase}{_message(answer)}"
    if answer.status_code == 404:
        raise FileNotFoundError(said)
    if answer.status_code == 412:
        raise Changed(said)
    raise (_Passing if answer.status_code in (408, 429) or answer.status_code >= 500 else OSError)(said)


def _message(answer: "httpx.Response") -> str:
    """What the service itself says, in JSON or XML."""
    found = re.search(r'"message":\s*"([^"\n]*)|<Message>([^<\n]*)', answer.text)
    return f": {found[1] or found[2]}" if found else ""
