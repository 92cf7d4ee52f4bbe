"""Images behind http(s) URLs: fetched whole, within bounds, from public hosts.

A list of URLs may come from anywhere, so no URL and no redirect of one may reach into the network that this process
runs in. A name is looked up here, what it stands for is looked at, and exactly that address is connected to: a name
that stands for another address a moment later changes nothing. Behind a proxy it is the proxy that looks names up, and
only addresses that are written out can be looked at.
"""

import atexit
import ipaddress
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from pixscribe.errors import DecodeError, ReadError
from pixscribe.storage import MAX_IMAGE_BYTES

TRIES = 4
FIRST_PAUSE_S = 0.5
"""Before the second try; each pause is about four times the one before."""
LONGEST_PAUSE_S = 30.0
STEP_S = 0.5
"""How long nobody looks whether it is over."""
CONNECT_S = 10.0
SILENCE_S = 30.0
"""A host that sends nothing for so long is given up."""
TOTAL_S = 180.0
"""For an image, from the first look at its host to its last byte, with all tries."""
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 64
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
REDIRECTS = frozenset((301, 302, 303, 307, 308))
HEADERS: Mapping[bytes | str, bytes | str] = {
    "accept": "image/*, */*;q=0.5",
    "accept-encoding": "identity",
    "user-agent": "pixscribe",
}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Passing(Exception):
    """May go better the next time."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def fetch(url: str, *, allow_private_hosts: bool = False, is_over: Callable[[], bool] = lambda: False) -> bytes:
    """The bytes behind an http(s) URL. Thread-safe; connections are kept for the next image of the same host.

    Within a second after `is_over` it is given up: a run that is stopped does not wait for slow hosts. Raises
    `ReadError` with the reason, `DecodeError` (too_large) above 512 MiB.
    """
    return _web(allow_private_hosts).fetch(url, is_over)


class Web:
    """The public web, or all of it with `allow_private_hosts`."""

    def __init__(
        self,
        *,
        allow_private_hosts: bool = False,
        total_s: float = TOTAL_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._total_s = total_s
        self._sleep = sleep
        self._patience = Patience()
        self._pools: dict[str | None, httpcore.ConnectionPool] = {}
        self._pools_lock = threading.Lock()

    def fetch(self, url: str, is_over: Callable[[], bool] = lambda: False) -> bytes:
        """As the function of this name."""
        self._patience.begin(self._total_s, is_over)
        for number in range(1, TRIES + 1):
            try:
                return self._follow(_parsed(url))
            except _Passing as error:
                pause_s = _pause_s(number, error.retry_after_s)
                if number == TRIES or self._patience.left_s() <= pause_s:
                    raise ReadError(f"cannot be fetched: {error}; given up after {number} tries") from error
            self._patience.pause(pause_s, self._sleep)
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Close all connections."""
        with self._pools_lock:
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()

    def _follow(self, url: httpx.URL) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._try(url)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise ReadError(f"cannot be fetched: more than {MAX_REDIRECTS} redirects, the last to {url.host}")

    def _try(self, url: httpx.URL) -> bytes | httpx.URL:
        """The body, or where it is said to be."""
        try:
            with self._pool(url).stream("GET", _target(url), headers=HEADERS, extensions=_TIMEOUTS) as response:
                return self._read(response, url)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError) as error:
            raise _Passing(f"{url.host}: {type(error).__name__} {error}".rstrip()) from error
        except OSError as error:
            message = f"{url.host}: {error.strerror or error}"
            if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
                raise ReadError(f"cannot be fetched: {message}") from error
            raise _Passing(message) from error
        except (httpcore.UnsupportedProtocol, httpcore.LocalProtocolError, UnicodeError, ValueError) as error:
            raise ReadError(f"cannot be fetched: {error}") from error

    def _read(self, response: httpcore.Response, url: httpx.URL) -> bytes | httpx.URL:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in headers:
            # many write it in UTF-8 as it is, and a URL stands for bytes
            return _redirected(url, quote(headers[b"location"], safe=_OF_URLS, encoding="latin-1"))
        if response.status in PASSING:
            raise _Passing(f"{url.host} answers {response.status}", _seconds(headers.get(b"retry-after", "")))
        if response.status != 200:
            raise ReadError(f"cannot be fetched: {url.host} answers {response.status}")
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ReadError(f"cannot be fetched: {url.host} answers in the content-encoding {encoding[:40]!r}")
        _check_size(int(_seconds(headers.get(b"content-length", "")) or 0))
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            _check_size(len(body))
        return bytes(body)

    def _pool(self, url: httpx.URL) -> httpcore.ConnectionPool:
        proxy = _proxy_for(url)
        if not self._allow_private_hosts:
            _check_written_out(url.host)
        with self._pools_lock:
            if proxy not in self._pools:
                is_guarded = proxy is None and not self._allow_private_hosts
                self._pools[proxy] = httpcore.ConnectionPool(
                    ssl_context=httpx.create_ssl_context(),
                    proxy=_proxy(proxy) if proxy else None,
                    max_connections=MAX_CONNECTIONS,
                    keepalive_expiry=SILENCE_S,
                    network_backend=_Network(self._patience, is_guarded),
                )
            return self._pools[proxy]


class Patience(threading.local):
    """How long this thread's image may still take: whatever it waits for ends by then, be it a byte every second."""

    def __init__(self) -> None:
        self._until_s = float("inf")
        self._is_over: Callable[[], bool] = lambda: False

    def begin(self, total_s: float, is_over: Callable[[], bool]) -> None:
        """Count from now."""
        self._until_s, self._is_over = time.monotonic() + total_s, is_over

    def left_s(self) -> float:
        """Seconds; not above zero when it is over."""
        return 0.0 if self._is_over() else self._until_s - time.monotonic()

    def bounded(self, timeout_s: float | None) -> float:
        """The timeout, or what is left. Raises `httpcore.ReadTimeout` if nothing is."""
        left_s = self.left_s()
        if left_s <= 0:
            raise httpcore.ReadTimeout("it takes too long altogether")
        return min(SILENCE_S if timeout_s is None else timeout_s, left_s)

    def pause(self, pause_s: float, sleep: Callable[[float], None]) -> None:
        """Sleep so long, in pieces, but not when it is over."""
        while pause_s > 0 and self.left_s() > 0:
            sleep(min(pause_s, STEP_S))
            pause_s -= STEP_S


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and holds no other one that is not."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None or address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inner = (address.sixtofour, *(address.teredo or ()))
        if any(each is not None and not is_public(each) for each in inner):
            return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


_OF_URLS = "!#$%&'()*+,/:;=?@[]~"
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        # hosts of clouds that only their own machines see, and what Python's lists do not hold or not in every version
        ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "3fff::/20", "5f00::/16", "fec0::/10"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_TIMEOUTS = {"timeout": {"connect": CONNECT_S, "read": SILENCE_S, "write": SILENCE_S, "pool": SILENCE_S}}


class _Network(httpcore.NetworkBackend):
    """Connections to addresses that were looked at before, with an end to all patience."""

    def __init__(self, patience: Patience, is_guarded: bool) -> None:
        self._patience, self._is_guarded = patience, is_guarded
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                bounded_s = self._patience.bounded(timeout)
                stream = self._plain.connect_tcp(address, port, bounded_s, local_address, socket_options)
                return _Stream(stream, self._patience)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not self._is_guarded:
            return addresses
        public = [address for address in addresses if is_public(ipaddress.ip_address(address.partition("%")[0]))]
        if addresses and not public:
            raise _private(host, addresses[0])
        return public


class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends with the patience of who waits."""

    def __init__(self, stream: httpcore.NetworkStream, patience: Patience) -> None:
        self._stream, self._patience = stream, patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        silent_s = 0.0
        while True:
            step_s = self._patience.bounded(min(STEP_S, (SILENCE_S if timeout is None else timeout) - silent_s))
            try:
                return self._stream.read(max_bytes, step_s)
            except httpcore.ReadTimeout:
                silent_s += step_s
                if silent_s >= (SILENCE_S if timeout is None else timeout):
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._patience.bounded(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._patience.bounded(timeout))
        return _Stream(stream, self._patience)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@lru_cache(maxsize=2)
def _web(allow_private_hosts: bool) -> Web:
    """One for the whole process, closed at its end."""
    web = Web(allow_private_hosts=allow_private_hosts)
    atexit.register(web.close)
    return web


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ReadError(f"is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ReadError("is no http(s) URL")
    return parsed


def _target(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _redirected(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return _parsed(str(url.join(location)))
    except (httpx.InvalidURL, ValueError, ReadError) as error:
        raise ReadError(
            f"cannot be fetched: {url.host} redirects to {location[:80]!r}, which is no http(s) URL"
        ) from error


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_IMAGE_BYTES:
        raise DecodeError(f"more than the {MAX_IMAGE_BYTES} bytes that are read", code="too_large")


def _check_written_out(host: str) -> None:
    """Refuse what is private by its very spelling, which a proxy would reach as well."""
    if host.lower().rstrip(".") == "localhost":
        raise _private(host, host)
    with suppress(ValueError):
        if not is_public(ipaddress.ip_address(host.strip("[]").partition("%")[0])):
            raise _private(host, host)
    with suppress(OSError):  # 127.1, 0x7f.1 and 2130706433 are spellings too
        if not is_public(ipaddress.IPv4Address(socket.inet_aton(host))):
            raise _private(host, host)


def _private(host: str, address: str) -> ReadError:
    return ReadError(f"{host} is at the private address {address}; source.allow_private_hosts: true would reach it")


def _pause_s(number: int, retry_after_s: float | None) -> float:
    if retry_after_s is not None:
        return min(max(retry_after_s, 0.0), LONGEST_PAUSE_S)
    return min(FIRST_PAUSE_S * 4.0 ** (number - 1) * random.uniform(0.75, 1.25), LONGEST_PAUSE_S)


def _seconds(text: str) -> float | None:
    """A header's whole number; a date is not worth reading."""
    return float(text) if text.strip().isascii() and text.strip().isdigit() and len(text) < 20 else None


def _proxy_for(url: httpx.URL) -> str | None:
    """As HTTP_PROXY, HTTPS_PROXY and NO_PROXY say."""
    proxies = getproxies()
    if not proxies or proxy_bypass(url.host):
        return None
    return proxies.get(url.scheme) or proxies.get("all")


def _proxy(proxy: str) -> httpcore.Proxy:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ReadError(f"cannot be fetched: a proxy of the kind {parts.scheme!r} is not supported")
    auth = (parts.username, parts.password or "") if parts.username else None
    return httpcore.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=auth)
