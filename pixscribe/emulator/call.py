"""One HTTP request as the endpoints see it."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from pixscribe.emulator.replies import Refused, bad_key, interactions_error, rpc_error

MAX_BODY_BYTES = 20_971_520


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the owner of files, and the authority (`host` or `host:port`) by which the caller knows us."""

    project: str
    host: str


@dataclass(frozen=True, slots=True)
class Call:
    """`version` is v1 or v1beta, `target` the id in the path (empty if there is none)."""

    request: web.BaseRequest
    version: str
    target: str = ""
    takes_bearer: bool = False
    """Whether a key may come as `Authorization: Bearer`, which Gemini's own paths take for OAuth."""

    @property
    def origin(self) -> str:
        """Where the caller reached us, which may be a name or a port that only the caller knows."""
        return f"http://{self.request.host}"

    def caller(self) -> Caller:
        """Raises `Refused`."""
        return Caller(self.project(), self.request.host)

    def project(self) -> str:
        """The owner of what is made with this key: every key is a project of its own. Raises `Refused`."""
        bearer = re.match(r"bearer\b\s*(.*)", self.request.headers.get("Authorization", ""), re.IGNORECASE)
        if bearer and not self.takes_bearer:
            raise Refused(rpc_error(401, "UNAUTHENTICATED", _NO_OAUTH))
        key = bearer[1] if bearer else self.request.headers.get("x-goog-api-key") or self.request.query.get("key")
        if not key:
            raise Refused(rpc_error(403, "PERMISSION_DENIED", _NO_KEY))
        if key == "invalid" or key.startswith("bad"):
            raise Refused(bad_key())
        return key

    async def body(self) -> bytes:
        """The whole body, of 20 MiB at most. Raises `Refused`."""
        if (self.request.content_length or 0) > MAX_BODY_BYTES:
            raise _too_large()
        parts, size_bytes = [], 0
        async for part in self.chunks():
            parts.append(part)
            size_bytes += len(part)
            if size_bytes > MAX_BODY_BYTES:
                raise _too_large()
        return b"".join(parts)

    def chunks(self) -> AsyncIterator[bytes]:
        return self.request.content.iter_any()


def _too_large() -> Refused:
    message = f"Request payload size exceeds the limit: {MAX_BODY_BYTES} bytes."
    return Refused(interactions_error(400, "invalid_request", message))


_NO_OAUTH = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential."
)
_NO_KEY = (
    "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other "
    "form of API consumer identity to call this API."
)
