"""The Gemini API over HTTP: one function is one attempt, and what comes back is a noun or an error of ours.

Nothing here waits, repeats or counts: the retry policy and the limiter are values that the caller puts around a call.
Source: Gemini API documentation, "Interactions", "Files" and "Troubleshooting", read 2026-11.
"""

import asyncio
import base64
import binascii
import re
import resource
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
import httpx_aiohttp
import orjson

from pixscribe.errors import (
    AnswerError,
    ApiError,
    AuthenticationError,
    Blocked,
    ConfigError,
    FileConflict,
    ModelUnknown,
    NotReady,
    OutageError,
    PermissionRefused,
    QuotaExhausted,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
    SessionGone,
    StorageFull,
    UploadError,
)
from pixscribe.types import Usage

T = TypeVar("T")

CHUNK_BYTES = 8 * 1024 * 1024
"""The granularity of resumable uploads: every chunk but the last is a multiple of it."""
SLICE_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 30
# answers are small beside images, and inflating them is the one way they could grow without bound
HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "pixscribe"}
MAX_REPLY_BYTES = 32 * 1024 * 1024
"""No answer is larger: 65,536 output tokens are far below one megabyte."""
BLOCKED_CODES = frozenset(
    (
        *("content_blocked", "safety", "recitation", "language", "prohibited_content", "spii", "blocklist"),
        *("image_safety", "image_prohibited_content", "image_recitation", "image_other"),
    )
)
LONGEST_QUOTA_S = 7 * 86_400
"""The delay that comes with a full storage is 292 years: no quota that refills names so many days."""
TROUBLE_CODES = frozenset(
    (
        *(None, "api_error", "internal", "unavailable", "service_unavailable", "deadline_exceeded", "aborted"),
        *("rate_limit_exceeded", "too_many_requests"),
    )
)
"""Of an interaction that failed: these pass. Any other reason, known or not, is taken to lie in what was asked."""
SHORTEST_KEY = 12
"""Real keys have 39 characters; replacing a shorter one would spoil answers that happen to hold it."""
STATUS_RETRIED = frozenset((408, 409, 499))


@dataclass(frozen=True, slots=True)
class File:
    """An object of the Files API. `name` is `files/<id>`, `sha256` the hex digest that the service computed."""

    name: str
    uri: str
    mime_type: str
    size_bytes: int
    sha256: str
    state: str
    expires_at: datetime | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image inside a question: exactly one of `uri` (Files API or public https) and `data` (the bytes)."""

    mime_type: str
    uri: str | None = None
    data: bytes | None = None
    resolution: str | None = None

    def as_json(self) -> bytes:
        """The content object of the Interactions API."""
        rest = {"type": "image", "mime_type": self.mime_type, "uri": self.uri, "resolution": self.resolution}
        content = orjson.dumps({key: value for key, value in rest.items() if value is not None})
        if self.uri is not None:
            return content
        # not by way of orjson, which takes 4 MB for a quarter of one and leaves the heap in pieces
        return b"".join((content[:-1], b',"data":"', binascii.b2a_base64(self.data or b"", newline=False), b'"}'))


@dataclass(frozen=True, slots=True)
class Interaction:
    """What the model said. `incomplete` means that it was cut off, whatever the text looks like."""

    text: str
    incomplete: bool
    model: str
    usage: Usage


class GeminiClient:
    """The Files and Interactions calls of one project, over an httpx transport.

    Not over an `httpx.AsyncClient`: cookies, redirects and stored credentials must never happen here, and seeing to
    them costs as much CPU as everything else about a request. `timeout_s` bounds a whole attempt, so that an answer
    that drips in byte by byte ends too.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, *, base_url: str, api_key: str, timeout_s: float) -> None:
        self._transport = transport
        self._base_url = base_url.rstrip("/")
        # parsed once: it is a tenth of a request's cost
        self._interactions_url = httpx.URL(f"{self._base_url}/v1beta/interactions")
        self._upload_url = httpx.URL(f"{self._base_url}/upload/v1beta/files")
        self._key = {"x-goog-api-key": api_key}
        self._timeout_s = timeout_s

    async def create_interaction(self, body: bytes) -> Interaction:
        """Ask the model once. `body` comes from `interaction_body`.

        Raises `Blocked`, `RequestRefused`, `PermissionRefused` (a file that is gone, or a key without rights),
        `RateLimited`, `ServerUnavailable`; `AuthenticationError`, `ModelUnknown` and `QuotaExhausted` stop the run.
        """
        headers = {**self._key, "content-type": "application/json"}
        reply = await self._send("POST", self._interactions_url, headers, body)
        if reply.status == 404:
            raise ModelUnknown(f"model.name: the service does not know the model: {_error_of(reply).message}")
        return _understood(_read_interaction, _json_of(reply))

    async def start_upload(self, *, name: str, size_bytes: int, mime_type: str, display_name: str | None) -> str:
        """Announce a file called `files/<name>`; returns the URL for its bytes, which needs no key."""
        file = {"name": f"files/{name}", "mime_type": mime_type, "size_bytes": size_bytes}
        if display_name:
            file["display_name"] = display_name
        headers = {
            **self._key,
            "content-type": "application/json",
            "x-goog-upload-protocol": "resumable",
            "x-goog-upload-command": "start",
            "x-goog-upload-header-content-length": str(size_bytes),
            "x-goog-upload-header-content-type": mime_type,
        }
        reply = _stored(await self._send("POST", self._upload_url, headers, orjson.dumps({"file": file})))
        upload_url: str | None = reply.headers.get("x-goog-upload-url")
        if not upload_url:
            raise ServerUnavailable("the start of an upload was answered without an upload URL", status=reply.status)
        if urlsplit(upload_url)[:2] != urlsplit(self._base_url)[:2]:
            raise UploadError(f"the upload URL leads to {urlsplit(upload_url).netloc}, which nobody configured")
        return upload_url

    async def send_bytes(self, upload_url: str, data: bytes, *, offset: int, last: bool) -> File | None:
        """Send one chunk; the last one returns the finished file. Raises `FileConflict` if the name is taken."""
        headers = {
            "x-goog-upload-command": "upload, finalize" if last else "upload",
            "x-goog-upload-offset": str(offset),
        }
        reply = await self._send("POST", upload_url, headers, data)
        if reply.status == 409:
            raise FileConflict(f"the file exists already: {_error_of(reply).message}", status=409)
        if reply.status in (404, 410):
            raise SessionGone("the upload session is gone", status=reply.status)
        if reply.status in (308, 400) and reply.headers.get("x-goog-upload-status") == "active":
            # not refused for good: the service is at another offset, and `query_upload` tells which
            raise ServerUnavailable(f"the offset {offset} is not where the upload stands", status=400)
        _stored(reply)
        return _understood(_read_file, _json_of(reply).get("file")) if last else None

    async def query_upload(self, upload_url: str) -> "UploadState":
        """How far an upload has come. Raises `SessionGone` if the service does not know it any more."""
        reply = await self._send("POST", upload_url, {"x-goog-upload-command": "query"}, b"")
        if reply.status in (404, 410):
            raise SessionGone("the upload session is gone", status=reply.status)
        _ok(reply)
        is_final = reply.headers.get("x-goog-upload-status") == "final"
        return UploadState(is_final, _count(reply.headers.get("x-goog-upload-size-received")))

    async def check_model(self, model: str) -> None:
        """Find out, before anything is uploaded or asked, whether key, model and place will do; costs nothing.

        Raises `AuthenticationError` and `ModelUnknown`, `ConfigError` for a place from which the API may not be used,
        and `ImageError` for whatever says nothing about these.
        """
        reply = await self._send("GET", f"{self._base_url}/v1beta/models/{model}", self._key)
        error = _error_of(reply)
        if reply.status == 404 and error.code == "NOT_FOUND":
            raise ModelUnknown(f"model.name: the service does not know the model: {error.message}")
        if reply.status == 400 and error.code == "FAILED_PRECONDITION":
            raise ConfigError(f"the service refuses to be used from here: {error.message}")
        _ok(reply)

    async def get_file(self, name: str) -> File:
        """The file `files/<name>`. Raises `PermissionRefused` if there is none: the service has no 404 for files."""
        reply = await self._send("GET", f"{self._base_url}/v1beta/files/{name}", self._key)
        return _understood(_read_file, _json_of(reply))

    async def list_files(self) -> AsyncIterator[File]:
        """Every file of the project, in pages of 100."""
        token = ""
        while True:
            url = f"{self._base_url}/v1beta/files?pageSize=100" + (f"&pageToken={token}" if token else "")
            page = _json_of(await self._send("GET", url, self._key))
            for file in page.get("files", []):
                yield _understood(_read_file, file)
            token = page.get("nextPageToken", "")
            if not token:
                return

    async def delete_file(self, name: str) -> None:
        """Delete `files/<name>`."""
        _ok(await self._send("DELETE", f"{self._base_url}/v1beta/files/{name}", self._key))

    async def call(self, method: str, path: str, read: Callable[[Any], T], body: bytes | None = None) -> T:
        """What `read` makes of the JSON that `/v1beta/<path>` answers.

        Raises as `create_interaction` does, but `RequestRefused` of status 404 for what is not there.
        """
        headers = self._key if body is None else {**self._key, "content-type": "application/json"}
        reply = await self._send(method, f"{self._base_url}/v1beta/{path}", headers, body)
        return _understood(read, _json_of(reply))

    async def download(self, name: str, file: BinaryIO) -> None:
        """Append the content of `files/<name>` to `file`. Raises as `call` does; then a part of it may be written.

        It may be large, so `timeout_s` bounds the wait for each piece of it.
        """
        url = f"{self._base_url}/v1beta/files/{name}:download?alt=media"
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                await self._pour(url, file, deadline)
        except TimeoutError as error:
            raise ServerUnavailable(f"nothing came for {self._timeout_s:g} s", code="timeout") from error
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
            raise _network_error(error) from error

    async def _pour(self, url: str, file: BinaryIO, deadline: asyncio.Timeout) -> None:
        connect = {"timeout": {"connect": CONNECT_TIMEOUT_S}}
        request = httpx.Request("GET", url, headers={**HEADERS, **self._key}, extensions=connect)
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                body = self._without_key(await _read_body(response))
                raise _error_from(_Reply(response.status_code, response.headers, body, url))
            async for piece in response.aiter_raw():
                file.write(piece)
                deadline.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
        finally:
            await response.aclose()

    async def _send(
        self, method: str, url: httpx.URL | str, headers: Mapping[str, str], content: bytes | None = None
    ) -> "_Reply":
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(method, url, headers, content)
        except TimeoutError as error:
            raise ServerUnavailable(f"no complete answer within {self._timeout_s:g} s", code="timeout") from error
        except zlib.error as error:
            raise AnswerError(f"the answer is not compressed as it claims: {error}", code="invalid_json") from error
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
            raise _network_error(error) from error

    def _without_key(self, body: bytes) -> bytes:
        """Some errors quote the key, and errors are shown and stored."""
        key = self._key["x-goog-api-key"].encode()
        return body.replace(key, b"[the key]") if len(key) >= SHORTEST_KEY else body

    async def _exchange(
        self, method: str, url: httpx.URL | str, headers: Mapping[str, str], content: bytes | None
    ) -> "_Reply":
        request = httpx.Request(
            method,
            url,
            headers={**HEADERS, **headers, "content-length": str(len(content or b""))},
            content=_slices(content) if content and len(content) > SLICE_BYTES else content,
            extensions={"timeout": {"connect": CONNECT_TIMEOUT_S}},
        )
        response = await self._transport.handle_async_request(request)
        try:
            body = self._without_key(await _read_body(response))
            return _Reply(response.status_code, response.headers, body, str(request.url))
        finally:
            await response.aclose()


def open_transport(base_url: str, *, concurrency: int) -> httpx.AsyncBaseTransport:
    """The connections of a process to one origin; to be made and closed on the loop that uses them.

    The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for that origin is looked up once: aiohttp would do it in a
    thread for every request.
    """
    proxy = _proxy_for(base_url)
    most = min(concurrency, _spare_descriptors())
    return httpx_aiohttp.AiohttpTransport(
        client=lambda: aiohttp.ClientSession(
            connector=_Connector(limit=most, ttl_dns_cache=300, keepalive_timeout=30, ssl=httpx.create_ssl_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=proxy,
        )
    )


class _Connector(aiohttp.TCPConnector):
    """aiohttp's, except that a connection on which something came while it was idle is not used again.

    aiohttp keeps a second answer to one request, and takes it for the answer to the next.
    """

    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()
        return None


def _spare_descriptors() -> int:
    """Connections beyond this would only fail: half of what the process may open is left to files and to Prefect."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(4, soft // 2)


def _proxy_for(base_url: str) -> str | None:
    parts = urlsplit(base_url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


@dataclass(frozen=True, slots=True)
class UploadState:
    """Where an upload stands: finished, or at the offset from which to go on."""

    is_final: bool
    received_bytes: int


class Upload:
    """One file on its way to the Files API. An attempt that breaks is taken up by the next where it got to."""

    def __init__(self, client: GeminiClient, data: bytes, *, name: str, mime_type: str, display_name: str) -> None:
        self._client = client
        self._data = data
        self._name = name
        self._mime_type = mime_type
        self._display_name = display_name
        self._url: str | None = None

    async def attempt(self) -> File:
        """Upload what is missing; a name that is taken is answered with the file that has it.

        Names come from the content, so "taken" means "already there". Raises `FileConflict` if it is taken and yet
        nothing is to be had under it (deleted, expired or of another project), besides what the single calls raise.
        """
        try:
            return await self._go_on(self._url) if self._url else await self._start()
        except FileConflict as conflict:
            self._url = None
            try:
                return await self._client.get_file(self._name)
            except PermissionRefused:
                raise conflict from None
        except SessionGone:
            self._url = None
            raise

    async def _start(self) -> File:
        self._url = await self._client.start_upload(
            name=self._name, size_bytes=len(self._data), mime_type=self._mime_type, display_name=self._display_name
        )
        return await self._send_from(self._url, 0)

    async def _go_on(self, url: str) -> File:
        state = await self._client.query_upload(url)
        if not state.is_final:
            return await self._send_from(url, min(state.received_bytes, len(self._data)))
        try:
            return await self._client.get_file(self._name)  # it was only the answer that got lost
        except PermissionRefused as error:
            raise SessionGone("the upload ended without a file", status=error.status) from error

    async def _send_from(self, url: str, offset: int) -> File:
        while len(self._data) - offset > CHUNK_BYTES:
            await self._client.send_bytes(url, self._data[offset : offset + CHUNK_BYTES], offset=offset, last=False)
            offset += CHUNK_BYTES
        # nothing is copied where all of it is sent: Python gives back the same bytes
        file = await self._client.send_bytes(url, self._data[offset:], offset=offset, last=True)
        if file is None:
            raise UploadError("the upload was not finished")
        return file


async def upload_file(client: GeminiClient, data: bytes, *, name: str, mime_type: str, display_name: str) -> File:
    """Upload in one attempt; see `Upload`."""
    return await Upload(client, data, name=name, mime_type=mime_type, display_name=display_name).attempt()


def interaction_body(
    *,
    model: str,
    text: str,
    images: Sequence[ImagePart],
    schema: Mapping[str, Any] | None,
    generation_config: Mapping[str, Any],
    service_tier: Literal["standard", "flex", "priority"] = "standard",
) -> bytes:
    """The JSON of a question: text before the images (as the image guide advises), stored nowhere."""
    body: dict[str, Any] = {
        "model": model,
        "generation_config": {key: value for key, value in generation_config.items() if value is not None},
        "store": False,
    }
    if schema is not None:
        body["response_format"] = {"type": "text", "mime_type": "application/json", "schema": schema}
    if service_tier != "standard":
        body["service_tier"] = service_tier
    parts = [orjson.dumps({"type": "text", "text": text}), *(image.as_json() for image in images)]
    return b"".join((orjson.dumps(body)[:-1], b',"input":[', b",".join(parts), b"]}"))


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: httpx.Headers
    body: bytes
    url: str = ""


@dataclass(frozen=True, slots=True)
class _ErrorBody:
    """Both forms of an error: `code` is a snake_case string (Interactions) or the google.rpc status name."""

    code: str
    message: str
    details: tuple[Mapping[str, Any], ...] = ()


async def _read_body(response: httpx.Response) -> bytes:
    """The body, inflated if somebody in between compressed it; never more than `MAX_REPLY_BYTES` of it in memory."""
    encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise ServerUnavailable(f"answered in the content-encoding {encoding[:80]!r}, which was not asked for")
    unpacker = None if encoding == "identity" else zlib.decompressobj(wbits=47)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += unpacker.decompress(chunk, MAX_REPLY_BYTES + 1 - len(body)) if unpacker else chunk
        if len(body) > MAX_REPLY_BYTES:
            # it may have been billed, so it is not asked for as often as what was never answered
            raise AnswerError(f"an answer of more than {MAX_REPLY_BYTES} bytes was cut off")
    return bytes(body)


async def _slices(content: bytes) -> AsyncIterator[bytes]:
    """A large body in pieces, so that writing it leaves the loop to others in between."""
    for start in range(0, len(content), SLICE_BYTES):
        yield content[start : start + SLICE_BYTES]


def _network_error(error: Exception) -> Exception:
    # the transport calls every broken connection a ConnectTimeout: what it was stands in the cause
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        # asking again would not make it trusted
        return OutageError(f"model.base_url: the certificate of {cause.host} is not trusted: {cause.certificate_error}")
    is_timeout = isinstance(cause, TimeoutError | httpx.TimeoutException)
    # some of these have no text at all, hence the type
    text = " ".join(f"{type(cause).__name__}: {cause}".split()).rstrip(": ")[:500]
    text = re.sub(r"//[^/@\s]+@", "//", text)  # the proxy's password
    return ServerUnavailable(text, code="timeout" if is_timeout else "network_error")


def _ok(reply: _Reply) -> _Reply:
    if reply.status != 200:
        raise _error_from(reply)
    return reply


def _stored(reply: _Reply) -> _Reply:
    """As `_ok`, for what takes room: a 429 whose delay no quota needs means that there is none left."""
    try:
        return _ok(reply)
    except RateLimited as error:
        if (error.retry_after_s or 0.0) > LONGEST_QUOTA_S:
            raise StorageFull(f"the Files API's storage is full: {error}", status=429) from error
        raise


def _json_of(reply: _Reply) -> dict[str, Any]:
    _ok(reply)
    try:
        value = orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        if reply.body.lstrip()[:1] == b"{":
            # not the page of somebody in between: an answer, cut, which was billed
            raise AnswerError(f"the answer is no whole JSON: {error}", code="invalid_json", status=200) from error
        raise ServerUnavailable("the service answered 200 with something that is not JSON", status=200) from error
    if not isinstance(value, dict):
        raise ServerUnavailable("the service answered 200 with JSON that is no object", status=200)
    return value


def _read_interaction(body: Mapping[str, Any]) -> Interaction:
    status = body.get("status", "completed")
    failures = [item for item in body.get("errors") or () if isinstance(item, dict)]
    if status in ("failed", "cancelled") or (failures and status != "completed"):
        raise _failure(failures, status)
    usage = body.get("usage") or {}
    return Interaction(
        text=_text_of(body.get("steps") or ()),
        incomplete=status != "completed",
        model=str(body.get("model", "")),
        usage=Usage(*(_count(usage.get(f"total_{kind}_tokens")) for kind in ("input", "output", "thought"))),
    )


def _failure(failures: Sequence[Mapping[str, Any]], status: str) -> ApiError:
    for failure in failures:
        message = f"{failure.get('code')}: {failure.get('message')}"
        kind = ServerUnavailable if failure.get("code") in TROUBLE_CODES else Blocked
        return kind(message, status=200)
    return ServerUnavailable(f"the interaction ended as {status} without a reason", status=200)


def _text_of(steps: Sequence[Any]) -> str:
    """The trailing run of text blocks over model_output steps: thoughts are skipped, any other step ends the run."""
    texts: list[str] = []
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "model_output":
            blocks = [block for block in step.get("content") or () if isinstance(block, dict)]
            texts += [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]
        elif kind != "thought":
            texts.clear()
    return "".join(texts)


def _read_file(value: Any) -> File:
    if not isinstance(value, dict) or not value.get("name") or not value.get("uri"):
        raise UploadError("the Files API described a file without its name or uri")
    return File(
        name=str(value["name"]).removeprefix("files/"),
        uri=str(value["uri"]),
        mime_type=str(value.get("mimeType", "")),
        size_bytes=_count(value.get("sizeBytes")),
        sha256=_hex_digest(str(value.get("sha256Hash", ""))),
        state=str(value.get("state", "ACTIVE")),
        expires_at=_parse_time(value.get("expirationTime")),
        error=str((value.get("error") or {}).get("message", ""))[:500],
    )


def _hex_digest(encoded: str) -> str:
    """`sha256Hash` is base64 of the hex digest, not of the 32 bytes; both are understood."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:
        return encoded
    return raw.hex() if len(raw) == 32 else raw.decode("ascii", "replace")


def _parse_time(value: Any) -> datetime | None:
    # 0 to 9 fraction digits; datetime takes 6
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z", str(value))
    return datetime.fromisoformat(match[1] + (match[2] or "")[:7]).replace(tzinfo=UTC) if match else None


def _count(value: Any) -> int:
    try:
        return min(max(int(value or 0), 0), 2**53)
    except (TypeError, ValueError, OverflowError):
        return 0


def _understood(read: Callable[[Any], T], value: Any) -> T:
    """One odd reply must cost one attempt, not the run: whatever form nobody foresaw is a fault of the server."""
    try:
        return read(value)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise ServerUnavailable(f"the service answered in a form that is not known: {error}", status=200) from error


def _error_from(reply: _Reply) -> Exception:
    try:
        return _classify(reply)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
        kind = ServerUnavailable if reply.status == 429 or reply.status >= 500 else RequestRefused
        return kind(f"HTTP {reply.status} in a form that is not known", status=reply.status)


def _classify(reply: _Reply) -> Exception:
    error = _error_of(reply)
    said = f"HTTP {reply.status} {error.code}: {error.message}"
    if reply.status in (401, 402) or _reason_of(error) == "API_KEY_INVALID":
        return AuthenticationError(f"GEMINI_API_KEY is refused ({said})")
    if reply.status == 403:
        return PermissionRefused(said, status=403)
    if reply.status == 429:
        return _quota_error(reply, error, said)
    if reply.status in STATUS_RETRIED or (reply.status >= 500 and reply.status != 501):
        return ServerUnavailable(said, status=reply.status, retry_after_s=_retry_after_s(reply, error))
    if error.code in BLOCKED_CODES:
        return Blocked(said, status=reply.status)
    if reply.status == 400 and error.code.lower() == "failed_precondition":
        return NotReady(said, status=400)
    if 300 <= reply.status < 400:
        host = urlsplit(urljoin(reply.url, reply.headers.get("location", ""))).hostname
        return RequestRefused(f"HTTP {reply.status}: a redirect to {host} is not followed", status=reply.status)
    return RequestRefused(said, status=reply.status)


def _quota_error(reply: _Reply, error: _ErrorBody, said: str) -> Exception:
    violations = [each for detail in _details(error, "QuotaFailure") for each in detail.get("violations") or ()]
    if any(_is_none_at_all(violation, error) for violation in violations):
        return ModelUnknown(f"model.name: the key's tier does not have this model ({said})")
    quota_ids = [str(violation.get("quotaId", "")) for violation in violations]
    if error.code == "quota_exceeded" or any("PerDay" in quota_id for quota_id in quota_ids):
        return QuotaExhausted(f"the daily quota is used up ({said})")
    return RateLimited(said, status=429, retry_after_s=_retry_after_s(reply, error))


def _is_none_at_all(violation: Mapping[str, Any], error: _ErrorBody) -> bool:
    if "quotaValue" in violation:
        return bool(violation["quotaValue"] == "0")
    # the JSON of a proto drops a 0, and then only the message says it
    return re.search(r"\blimit: 0\b(?!\.)", error.message) is not None


def _error_of(reply: _Reply) -> _ErrorBody:
    try:
        value = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return _ErrorBody("", reply.body[:200].decode("utf-8", "replace"))
    if isinstance(value, list):
        value = next(iter(value), None)
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return _ErrorBody("", reply.body[:200].decode("utf-8", "replace"))
    code = error.get("code")
    details = tuple(detail for detail in error.get("details") or () if isinstance(detail, dict))
    name = code if isinstance(code, str) else str(error.get("status") or "")
    return _ErrorBody(name, str(error.get("message", ""))[:500], details)


def _details(error: _ErrorBody, kind: str) -> list[Mapping[str, Any]]:
    return [detail for detail in error.details if str(detail.get("@type", "")).endswith(f".{kind}")]


def _reason_of(error: _ErrorBody) -> str:
    return next((str(detail.get("reason", "")) for detail in _details(error, "ErrorInfo")), "")


def _retry_after_s(reply: _Reply, error: _ErrorBody) -> float | None:
    """The delay that was asked for: header, RetryInfo, or, for answers that have neither, the message's own words."""
    for seconds in (_header_delay_s(reply.headers), _retry_info_s(error), _worded_delay_s(error.message)):
        if seconds is not None:
            return max(0.0, seconds)
    return None


def _header_delay_s(headers: httpx.Headers) -> float | None:
    if milliseconds := _number(headers.get("retry-after-ms", "")):
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None


def _retry_info_s(error: _ErrorBody) -> float | None:
    delays = [str(detail.get("retryDelay", "")) for detail in _details(error, "RetryInfo")]
    return next((_number(delay.removesuffix("s")) for delay in delays), None)


def _worded_delay_s(message: str) -> float | None:
    match = re.search(r"retry in ((?:[\d.]+h)?(?:[\d.]+m(?!s))?(?:[\d.]+s)?)", message)
    parts = re.findall(r"([\d.]+)([hms])", match[1]) if match else []
    return sum(float(value) * {"h": 3600, "m": 60, "s": 1}[unit] for value, unit in parts) if parts else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text.strip()) else None
