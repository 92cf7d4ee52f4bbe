"""The HTTP server: which endpoint a request goes to, how its reply is delivered, and the thread that it all runs on."""

import asyncio
import contextlib
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from pixscribe.emulator.batches import Batches
from pixscribe.emulator.books import Books
from pixscribe.emulator.call import Call
from pixscribe.emulator.chat import Chat
from pixscribe.emulator.faults import FaultSource
from pixscribe.emulator.files import FileStore
from pixscribe.emulator.generate import Generate
from pixscribe.emulator.interactions import Fetch, Interactions
from pixscribe.emulator.models import Models
from pixscribe.emulator.options import EmulatorOptions
from pixscribe.emulator.replies import HTML, Refused, Reply, json_reply, rpc_error
from pixscribe.emulator.spool import Spool
from pixscribe.emulator.uploads import Uploads

Endpoint = Callable[[Call], Awaitable[Reply]]

_PATH = re.compile(
    r"/(upload/|download/)?(v1beta|v1)/(files|interactions|models|batches|openai/chat/completions)"
    r"(?:/([^/:]+)((?::download|:generateContent|:batchGenerateContent|[:/]cancel)?))?"
)
_NOT_FOUND = Reply(404, b"<html><title>Error 404 (Not Found)</title>The requested URL was not found.</html>", HTML)
_INTERNAL = rpc_error(500, "INTERNAL", "An internal error has occurred.")
_STOP_TIMEOUT_S = 10
BOOKS_PATH = "/emulator/books"
"""No path of Gemini's: what was done so far, in numbers, for who runs the emulator in another process."""


class Emulator:
    """A Gemini-compatible server on a thread of its own, `/v1beta` and `/v1`.

    It has Files, Interactions, generateContent (also as OpenAI's chat completions), its batches, and Models.

    >>> with Emulator() as emulator:
    ...     print(emulator.url)  # http://127.0.0.1:PORT

    `clock` (seconds since 1970) rules expiry and quotas, `fetch` brings the bytes of public image URLs.
    """

    def __init__(
        self,
        options: EmulatorOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        fetch: Fetch | None = None,
    ) -> None:
        self.options = options or EmulatorOptions()
        self.books = Books()
        self.url = ""
        self._faults = FaultSource(self.options.faults, self.options.seed)
        store = FileStore(clock, self.options.seed, self.options.storage_bytes)
        self._interactions = Interactions(self.options, store, self.books, self._faults, clock, fetch)
        uploads = Uploads(store, self.books, self._faults, clock, keep_bytes=self.options.look)
        generate = Generate(self._interactions)
        self._batches = Batches(self.options, store, generate, self.books, self._faults, clock)
        self._endpoints = {
            **_endpoints(store, uploads, self._interactions, Models(self._faults)),
            **_batch_endpoints(self._batches),
            "POST models/*:generateContent": ("models.generate", generate.content),
            "POST openai/chat/completions": ("chat.completions", Chat(self._interactions).completions),
        }
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started: threading.Event = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Returns when the server listens; raises `OSError` when it cannot."""
        self._thread = threading.Thread(target=self._run, name="emulator", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Breaks off what is still being answered. Does nothing if it does not run."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it may end between the question and the call
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def script(self, *faults: str) -> None:
        """The next interactions meet these faults in this order.

        The next uploads meet those named `upload_...`, the next looks at a model those named `model_...`, the next
        batches `batch_...`, and the next requests of a batch `batch_line_...`. `ok`, `upload_ok`, `model_ok`,
        `batch_ok` and `batch_line_ok` stand for no fault. Raises `ConfigError` for an unknown name.
        """
        self._faults.script(*faults)

    def always(self, *faults: str) -> None:
        """From now on every request of their class meets these faults, several of one class in turn.

        A call replaces what the one before it said; without names nothing stands any more. What is scripted comes
        first. Raises `ConfigError` for an unknown name.
        """
        self._faults.always(*faults)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # cancellation tells the fault `timeout` that its client has left
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.options.host, self.options.port, backlog=1024).start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
            self._batches.close()
            self._interactions.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        name, reply = await self._reply(request)
        self.books.by_endpoint[name] += 1
        if reply.status:
            self.books.by_status[reply.status] += 1
        return await _deliver(request, reply)

    async def _reply(self, request: web.BaseRequest) -> tuple[str, Reply]:
        if request.method == "GET" and request.path == BOOKS_PATH:
            return "books", json_reply(self.books.summary())
        match = _PATH.fullmatch(request.path)
        if match is None:
            return "unknown", _NOT_FOUND
        prefix, version, collection, target, verb = match.groups()
        shape = f"{request.method} {prefix or ''}{collection}{'/*' if target else ''}{verb or ''}"
        if shape == "POST upload/files":
            shape += _upload_step(request)
        name, endpoint = self._endpoints.get(shape, ("unknown", _unknown))
        try:
            return name, await endpoint(Call(request, version, target or ""))
        except Refused as refused:
            return name, refused.reply
        except Exception:
            request.protocol.logger.exception("The emulator failed to answer %s %s", request.method, request.path)
            return name, _INTERNAL


def serve_forever(options: EmulatorOptions) -> None:
    """Print the URL on stdout, run until SIGINT or SIGTERM, and print the totals of the books on stderr."""
    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Emulator(options) as emulator:
            print(emulator.url, flush=True)
            over.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(emulator.books.totals(), file=sys.stderr)


def _endpoints(
    store: FileStore, uploads: Uploads, interactions: Interactions, models: Models
) -> dict[str, tuple[str, Endpoint]]:
    """Shape of the request -> name in the books, and what answers."""
    return {
        "POST upload/files start": ("upload.start", uploads.start),
        "POST upload/files bytes": ("upload.bytes", uploads.bytes),
        "POST upload/files multipart": ("upload.multipart", uploads.multipart),
        "GET files": ("files.list", store.list),
        "GET files/*": ("files.get", store.get),
        "GET files/*:download": ("files.download", store.download),
        "GET download/files/*:download": ("files.download", store.download),
        "DELETE files/*": ("files.delete", store.delete),
        "POST interactions": ("interactions.create", interactions.create),
        "GET interactions/*": ("interactions.get", interactions.get),
        "DELETE interactions/*": ("interactions.delete", interactions.delete),
        "POST interactions/*/cancel": ("interactions.cancel", interactions.cancel),
        "GET models/*": ("models.get", models.get),
    }


def _batch_endpoints(batches: Batches) -> dict[str, tuple[str, Endpoint]]:
    return {
        "POST models/*:batchGenerateContent": ("batches.create", batches.create),
        "GET batches": ("batches.list", batches.list),
        "GET batches/*": ("batches.get", batches.get),
        "DELETE batches/*": ("batches.delete", batches.delete),
        "POST batches/*:cancel": ("batches.cancel", batches.cancel),
    }


def _upload_step(request: web.BaseRequest) -> str:
    if "upload_id" in request.query:
        return " bytes"
    return " multipart" if request.headers.get("X-Goog-Upload-Protocol") == "multipart" else " start"


async def _unknown(call: Call) -> Reply:
    return _NOT_FOUND


async def _deliver(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    if reply.delivery == "never":
        await asyncio.get_running_loop().create_future()  # cancelled when the client leaves
    if reply.delivery == "reset":
        _reset(request)
    headers = {**reply.headers, "Content-Type": reply.content_type}
    if reply.text is not None:
        return await _deliver_text(request, reply, reply.text, headers)
    if reply.delivery == "cut":
        return await _deliver_half(request, reply, headers)
    return web.Response(status=reply.status or 500, body=reply.body, headers=headers)


async def _deliver_text(
    request: web.BaseRequest, reply: Reply, text: Spool, headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.content_length = text.size_bytes
    await response.prepare(request)
    for piece in text.pieces(text.size_bytes // 2 if reply.delivery == "cut" else text.size_bytes):
        await response.write(piece)
    if reply.delivery == "cut" and request.transport is not None:
        request.transport.close()
    return response


def _reset(request: web.BaseRequest) -> None:
    """Close with a TCP reset rather than with an orderly end."""
    transport = request.transport
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _deliver_half(request: web.BaseRequest, reply: Reply, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.content_length = len(reply.body)
    await response.prepare(request)
    await response.write(reply.body[: len(reply.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
