"""A server on loopback that breaks the rules of TCP, TLS and HTTP, one connection at a time.

Each connection meets the next behaviour of the script, and after its end the one called `then`:

    with FaultyServer(reset, reset, then=Relay(emulator.url)) as server:
        ...  # two connections are reset, and all others reach the emulator

A behaviour is an async function of a `Connection`. Whatever it leaves open is closed behind it, and nothing lasts
longer than `LIMIT_S` or than the `with` block. The server has a thread of its own, so that tests may be sync or async.
"""

import asyncio
import re
import socket
import ssl
import struct
import threading
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

LIMIT_S = 20.0
"""No connection is served for longer."""
RECEIVE_BUFFER_BYTES = 64 * 1024
"""Small, so that a client notices early that nobody reads what it sends."""
LEFT = (ConnectionError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError)
"""What a behaviour sees when the client goes first, which is no failure of the test."""

End = Literal["fin", "reset"]
Behaviour = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One accepted connection, before anything was read from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read_request(self) -> bytes:
        """One whole HTTP request, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        return head + await self.reader.readexactly(int(length[1]) if length else 0)

    async def send(self, data: bytes, *, drip_s: float = 0.0) -> None:
        """Send at once or, if there is a `drip_s`, byte by byte with so many seconds after each."""
        for piece in _pieces(data, drip_s):
            self.writer.write(piece)
            await self.writer.drain()
            if drip_s:
                await asyncio.sleep(drip_s)

    async def wait_for_end(self) -> None:
        """Read and forget until the client has gone."""
        while await self.reader.read(65536):
            pass

    async def end(self, how: End) -> None:
        """Close with a reset, or in order: everything that was sent arrives before the client sees the end."""
        if how == "reset":
            _reset(self.writer)
            return
        with suppress(OSError):  # the client was faster
            self.writer.write_eof()
        await self.wait_for_end()


class FaultyServer:
    """See the module. `connections` counts those that were accepted; `url` has the scheme http, `tls_url` https.

    A run begins with a look at the model. With `looked_at`, the first connection is answered that, and not counted, so
    that the script is met by what follows.
    """

    def __init__(self, *script: Behaviour, then: Behaviour, looked_at: bool = True) -> None:
        self.url = self.tls_url = ""
        self.connections = -1 if looked_at else 0
        self._script = deque(script)
        if looked_at:
            self._script.appendleft(Say(response(b"{}")))
        self._then = then
        self._failures: list[Exception] = []
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="faulty-server", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._failures and error is None:
            raise self._failures[0]

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        server = await asyncio.start_server(self._accept, sock=listening)
        port = listening.getsockname()[1]
        self.url, self.tls_url = f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port}"
        self._started.set()
        await self._stop.wait()
        server.close()
        tasks, writers = list(self._open), list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            await _close(writer)  # again, for those whose task had not even begun
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        behaviour = self._script.popleft() if self._script else self._then
        task = asyncio.ensure_future(self._meet(behaviour, Connection(reader, writer)))
        self._open[task] = writer
        task.add_done_callback(lambda _: self._open.pop(task))

    async def _meet(self, behaviour: Behaviour, connection: Connection) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                await behaviour(connection)
        except LEFT:
            pass
        except Exception as failure:
            self._failures.append(failure)
        finally:
            await _close(connection.writer)


async def reset(connection: Connection) -> None:
    """Reset the connection before anything was read."""
    await connection.end("reset")


async def never_read(connection: Connection) -> None:
    """Let the request pile up, until the client has gone or the server stops."""
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(LIMIT_S)


async def never_answer(connection: Connection) -> None:
    """Read everything and say nothing."""
    await connection.wait_for_end()


@dataclass(frozen=True, slots=True)
class Say:
    """Read the request and answer it with these very bytes, whatever they are; then end in that way.

    With `drip_s` the bytes after the first `at_once` go one by one, so many seconds apart. `stays_open` leaves it to
    the client to end the connection.
    """

    data: bytes
    drip_s: float = 0.0
    at_once: int = 0
    end: End = "fin"
    stays_open: bool = False

    async def __call__(self, connection: Connection) -> None:
        await connection.read_request()
        await connection.send(self.data[: self.at_once])
        await connection.send(self.data[self.at_once :], drip_s=self.drip_s)
        await (connection.wait_for_end() if self.stays_open else connection.end(self.end))


@dataclass(frozen=True, slots=True)
class Relay:
    """Pass the connection through to the server of `url`, as far as it is to go.

    After `request_bytes` of what the client sends, or `answer_bytes` of what it would get, the connection ends in that
    way; or, if there are `last_words`, with those and a close that does not wait for what is still being sent. `drip_s`
    passes the answer byte by byte, `swallows` passes none of it.
    """

    url: str
    request_bytes: int | None = None
    answer_bytes: int | None = None
    end: End = "reset"
    last_words: bytes = b""
    drip_s: float = 0.0
    swallows: bool = False

    async def __call__(self, connection: Connection) -> None:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        server = Connection(reader, writer)
        ways = [asyncio.ensure_future(way) for way in (self._ask(connection, server), self._answer(server, connection))]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
            if self.last_words:
                await connection.send(self.last_words)
            elif self.request_bytes is not None or self.answer_bytes is not None:
                await connection.end(self.end)
        finally:
            writer.close()  # before anything is awaited: the server may stop meanwhile
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _close(writer)

    async def _ask(self, client: Connection, server: Connection) -> None:
        async for data in _bounded(client.reader, self.request_bytes):
            await server.send(data)

    async def _answer(self, server: Connection, client: Connection) -> None:
        async for data in _bounded(server.reader, self.answer_bytes):
            if not self.swallows:
                await client.send(data, drip_s=self.drip_s)


@dataclass(frozen=True, slots=True)
class OverTls:
    """Shake hands with a certificate first."""

    context: ssl.SSLContext
    inner: Behaviour

    async def __call__(self, connection: Connection) -> None:
        await connection.writer.start_tls(self.context)
        await self.inner(connection)


async def reset_in_handshake(connection: Connection) -> None:
    """Read the greeting of TLS and reset the connection."""
    await connection.reader.readexactly(5)
    await connection.end("reset")


def response(
    body: bytes,
    *,
    status: str = "200 OK",
    content_type: str = "application/json",
    length: int | None = None,
    **extra: str,
) -> bytes:
    """An HTTP response. `length` is what Content-Length says, `extra` more headers, with `_` for `-`.

    It says that the connection ends with it, unless `extra` says otherwise: else the next attempt might be sent into a
    connection that is being closed.
    """
    length = len(body) if length is None else length
    headers = {"content-type": content_type, "content-length": str(length), "connection": "close", **extra}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def gzip_bomb(size_bytes: int) -> bytes:
    """So many zeros, rounded up to whole MiB, in a thousandth of the length; of equal pieces, hence made in no time."""
    zeros = bytes(1024 * 1024)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    # after a full flush the packer is as new, so each piece may stand any number of times
    piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    count = -(-size_bytes // len(zeros))
    checksum = 0
    for _ in range(count):
        checksum = zlib.crc32(zeros, checksum)
    end = packer.flush(zlib.Z_FINISH) + struct.pack("<II", checksum, count * len(zeros) % 2**32)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + piece * count + end


def closed_port() -> int:
    """A port of loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def _bounded(reader: asyncio.StreamReader, limit: int | None) -> AsyncIterator[bytes]:
    """What arrives, up to `limit` bytes."""
    remaining = limit
    while remaining is None or remaining > 0:
        data = await reader.read(65536 if remaining is None else min(65536, remaining))
        if not data:
            return
        remaining = None if remaining is None else remaining - len(data)
        yield data


def _pieces(data: bytes, drip_s: float) -> Iterator[bytes]:
    if not drip_s:
        yield data
        return
    for position in range(len(data)):
        yield data[position : position + 1]


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    # a task of its own: to cancel whoever waits for the end must not cancel the end
    closing = asyncio.ensure_future(writer.wait_closed())
    closing.add_done_callback(lambda _: closing.cancelled() or closing.exception())
    await asyncio.wait({closing}, timeout=0.5)
    writer.transport.abort()
