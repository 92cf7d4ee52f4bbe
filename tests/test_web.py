import gzip
import ipaddress
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pyarrow.parquet as pq
import pytest

import pixscribe.storage
import pixscribe.web
from pixscribe.emulator import Emulator
from pixscribe.errors import DecodeError, ReadError
from pixscribe.reading import read_image
from pixscribe.web import Web, is_public
from tests.conftest import SAMPLES, MakeConfig, annotate

PNG = (SAMPLES / "nothing.png").read_bytes()


class Site:
    """A real HTTP server: what it answers to a path is a function or bytes; what it was asked is counted."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: Counter[str] = Counter()
        self.connections = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                site.connections += 1

            def do_GET(self) -> None:
                path = unquote(self.path)
                site.asked[path] += 1
                answer = site.answers.get(path.partition("?")[0], 404)
                if callable(answer):
                    answer(self)
                else:
                    reply(
                        self, 200 if isinstance(answer, bytes) else answer, answer if isinstance(answer, bytes) else b""
                    )

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    with serving(running.server):
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def web(pauses: list[float]) -> Iterator[Web]:
    """Reaches this machine, and does not sleep."""
    opened = Web(allow_private_hosts=True, sleep=pauses.append)
    yield opened
    opened.close()


def test_an_image_is_fetched_and_the_connection_kept(site: Site, web: Web):
    site.answers = {"/a b/é.png": PNG, "/x": b"y" * 3_000_000}
    assert web.fetch(f"{site.url}/a%20b/é.png?size=2") == PNG
    assert len(web.fetch(f"{site.url}/x#part")) == 3_000_000
    assert (site.connections, site.asked) == (1, {"/a b/é.png?size=2": 1, "/x": 1})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304, 501])
def test_what_is_not_there_is_asked_for_once(site: Site, web: Web, status: int):
    site.answers["/a"] = lambda handler: reply(handler, status)
    with pytest.raises(ReadError, match=f"cannot be fetched: 127.0.0.1 answers {status}"):
        web.fetch(f"{site.url}/a")
    assert site.asked["/a"] == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_for_again_with_growing_pauses(site: Site, web: Web, status: int, pauses: list[float]):
    site.answers["/a"] = lambda handler: reply(handler, 200 if site.asked["/a"] == 4 else status, PNG)
    assert web.fetch(f"{site.url}/a") == PNG
    assert 8 <= sum(pauses) <= 14
    site.answers["/b"] = lambda handler: reply(handler, status)
    with pytest.raises(ReadError, match=f"127.0.0.1 answers {status}; given up after 4 tries"):
        web.fetch(f"{site.url}/b")


@pytest.mark.parametrize(
    ("said", "least_s", "most_s"),
    [
        pytest.param("7", 7, 7, id="seconds"),
        pytest.param("99999", 30, 30, id="a-day"),
        pytest.param("9" * 400, 0.3, 0.7, id="no-number"),
        pytest.param("Tue, 24 Nov 2026 11:00:00 GMT", 0.3, 0.7, id="date"),
    ],
)
def test_a_server_that_says_how_long_is_waited_for_within_reason(
    site: Site, web: Web, pauses: list[float], said: str, least_s: float, most_s: float
):
    site.answers["/a"] = lambda handler: reply(handler, 429 if site.asked["/a"] == 1 else 200, PNG, Retry_After=said)
    assert web.fetch(f"{site.url}/a") == PNG
    assert least_s <= sum(pauses) <= most_s


def cut(handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, PNG[:50], Content_Length="9999")
    handler.close_connection = True


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\x01 nothing of HTTP\r\n\r\n")
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize("fault", [cut, garbage, hang_up])
def test_a_broken_answer_is_asked_for_again(site: Site, web: Web, fault: Callable[[BaseHTTPRequestHandler], None]):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if site.asked["/a"] < 3:
            fault(handler)
        else:
            reply(handler, 200, PNG)

    site.answers["/a"] = answer
    assert web.fetch(f"{site.url}/a") == PNG
    site.answers["/b"] = fault
    with pytest.raises(ReadError, match="given up after 4 tries"):
        web.fetch(f"{site.url}/b")


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    drip(handler)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
    drip(handler)


def drip(handler: BaseHTTPRequestHandler) -> None:
    try:
        for _ in range(500):
            handler.wfile.write(b"x")
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(10)
    with suppress(OSError):
        handler.connection.recv(1)
    handler.close_connection = True


@pytest.mark.parametrize("fault", [drip_headers, drip_body, say_nothing])
def test_a_host_that_takes_its_time_is_given_up(site: Site, fault: Callable[[BaseHTTPRequestHandler], None]):
    site.answers["/a"] = fault
    web = Web(allow_private_hosts=True, total_s=0.3)
    started_s = time.monotonic()
    with pytest.raises(ReadError, match=r"cannot be fetched: 127\.0\.0\.1: ReadTimeout"):
        web.fetch(f"{site.url}/a")
    assert time.monotonic() - started_s < 3
    web.close()


def test_what_is_fetched_for_a_run_that_is_over_is_given_up(site: Site, web: Web):
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        over.set()
        say_nothing(handler)

    site.answers["/a"] = answer
    started_s = time.monotonic()
    with pytest.raises(ReadError, match="cannot be fetched"):
        web.fetch(f"{site.url}/a", over.is_set)
    assert time.monotonic() - started_s < 3


def test_what_is_too_large_is_not_read(site: Site, web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixscribe.web, "MAX_IMAGE_BYTES", 100_000)
    site.answers["/told"] = lambda handler: reply(handler, 200, b"", Content_Length="9999999999")

    def untold(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        try:
            for _ in range(1000):
                handler.wfile.write(bytes(10_000))
        except OSError:
            pass
        handler.close_connection = True

    site.answers["/untold"] = untold
    for path in ("/told", "/untold"):
        with pytest.raises(DecodeError) as caught:
            web.fetch(site.url + path)
        assert caught.value.code == "too_large"
    assert set(site.asked.values()) == {1}


def test_what_is_packed_though_nobody_asked_for_it_is_not_unpacked(site: Site, web: Web):
    site.answers["/a"] = lambda handler: reply(handler, 200, gzip.compress(bytes(10**7)), Content_Encoding="gzip")
    with pytest.raises(ReadError, match="in the content-encoding 'gzip'"):
        web.fetch(f"{site.url}/a")


def test_redirects_are_followed_five_times(site: Site, web: Web):
    for number in range(8):
        target = f"{number + 1}?x=é" if number % 2 else f"{site.url}/{number + 1}"
        site.answers[f"/{number}"] = lambda handler, target=target: reply(handler, 302, Location=target)  # type: ignore[misc]
    site.answers["/5"] = PNG
    assert web.fetch(f"{site.url}/0") == PNG
    site.answers["/5"] = lambda handler: reply(handler, 302, Location="/6")
    with pytest.raises(ReadError, match=r"more than 5 redirects, the last to 127\.0\.0\.1"):
        web.fetch(f"{site.url}/0")


def test_a_redirect_may_be_written_in_utf8(site: Site, web: Web):
    site.answers["/café.jpg"] = PNG
    site.answers["/a"] = lambda handler: reply(handler, 302, Location="/café.jpg".encode().decode("latin-1"))
    assert web.fetch(f"{site.url}/a") == PNG


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/y", "data:image/png;base64,xx", "//", "http://[::1"])
def test_a_redirect_to_something_else_is_not_followed(site: Site, web: Web, target: str):
    site.answers["/a"] = lambda handler: reply(handler, 302, Location=target)
    with pytest.raises(ReadError, match=r"127\.0\.0\.1 redirects to .*, which is no http\(s\) URL|cannot be fetched"):
        web.fetch(f"{site.url}/a")


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *(
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ),
        *(
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "::127.0.0.1",
        ),
        *("168.63.129.16", "192.0.0.192", "192.88.99.1", "fec0::1", "3fff::1", "5f00::1", "64:ff9b:1::7f00:1"),
    ],
)
def test_an_address_that_is_not_public_is_known(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "1.1.1.1"])
def test_a_public_address_is_known(address: str):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST.", "127.1", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:127.0.0.1]"],
)
def test_a_private_host_is_refused_however_it_is_spelled(site: Site, host: str):
    site.answers["/a"] = PNG
    port = urlsplit(site.url).port
    with pytest.raises(ReadError, match=r"is at the private address|cannot be fetched|is no URL"):
        read_image(f"http://{host}:{port}/a")
    assert (site.connections, site.asked) == (0, {})


def test_a_redirect_into_the_private_network_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch):
    """The first host counts as public here; where it redirects to does not."""
    monkeypatch.setattr(pixscribe.web, "is_public", lambda address: str(address) == "127.0.0.1")
    site.answers["/a"] = lambda handler: reply(handler, 302, Location="http://169.254.169.254/latest/meta-data/")
    web = Web()
    with pytest.raises(ReadError, match=r"169\.254\.169\.254 is at the private address 169\.254\.169\.254"):
        web.fetch(f"{site.url}/a")
    web.close()


def test_a_name_is_looked_up_once_and_that_address_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch):
    """A name that is public when it is looked at and private when it is connected to gains nothing."""
    looked_up: list[str] = []

    def rebinding(host: str, port: int, *arguments: Any, **named: Any) -> list[Any]:
        looked_up.append(host)
        address = "127.0.0.1" if host == "127.0.0.1" or looked_up.count(host) > 1 else "10.9.9.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    web = Web()
    with pytest.raises(ReadError, match=r"evil\.test is at the private address 10\.9\.9\.9"):
        web.fetch(f"http://evil.test:{urlsplit(site.url).port}/a")
    monkeypatch.setattr(pixscribe.web, "is_public", lambda address: True)
    looked_up[:] = ["evil.test"]
    with pytest.raises(ReadError, match=r"evil\.test answers 404"):
        web.fetch(f"http://evil.test:{urlsplit(site.url).port}/a")
    assert looked_up.count("evil.test") == 2
    web.close()


@pytest.mark.parametrize(
    "url", ["http://", "https:///x", "http://a b/", "http://[::1/", "http://x:99999999/", "http://\u2028/"]
)
def test_what_is_no_url_is_a_read_error(url: str, web: Web):
    with pytest.raises(ReadError):
        web.fetch(url)


def test_a_host_that_is_not_there_is_given_up(web: Web, pauses: list[float]):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ReadError, match=r"127\.0\.0\.1: ConnectError .* given up after 4 tries"):
        web.fetch(f"http://127.0.0.1:{port}/a")
    with pytest.raises(ReadError, match=r"cannot be fetched: none\.invalid: "):
        web.fetch("http://none.invalid/a")


def test_a_proxy_is_used_and_a_private_address_is_not_asked_of_it(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", site.url)
    site.answers["http://images.example/a.png"] = PNG
    web = Web()
    assert web.fetch("http://images.example/a.png") == PNG
    for host in ("169.254.169.254", "localhost", "127.1", "0x7f000001"):
        with pytest.raises(ReadError, match="is at the private address"):
            web.fetch(f"http://{host}/")
    assert site.asked == {"http://images.example/a.png": 1}
    web.close()


# whole runs


def sample_urls(site: Site) -> list[str]:
    paths = sorted(path for path in SAMPLES.rglob("*") if path.is_file())
    site.answers |= {f"/{path.relative_to(SAMPLES)}": path.read_bytes() for path in paths}
    return [str(httpx.URL(f"{site.url}/{path.relative_to(SAMPLES)}")) for path in paths]


def tables(output: Path) -> dict[str, list[dict[str, Any]]]:
    return {table: pq.read_table(output / table).to_pylist() for table in ("images", "annotations", "responses")}


def listed(tmp_path: Path, urls: list[str], **settings: Any) -> dict[str, Any]:
    (tmp_path / "urls.txt").write_text("\n".join(urls) + "\n")
    return {"uri": str(tmp_path / "urls.txt"), "allow_private_hosts": True, **settings}


async def test_a_list_of_urls_gives_the_same_boxes_as_a_folder(make: MakeConfig, site: Site, tmp_path: Path):
    urls = [*sample_urls(site), f"{site.url}/none.png", f"{site.url}/page.png"]
    site.answers["/page.png"] = b"<!doctype html><html>Please log in</html>"
    config = make(source=listed(tmp_path, urls))
    await annotate(config)
    found = tables(tmp_path / "out")
    await annotate(make(output={"uri": str(tmp_path / "local")}))
    local = tables(tmp_path / "local")

    def boxes(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted((row["image_id"], row["prompt"], row["index"], row["label"], row["xmin"]) for row in rows)

    assert boxes(found["annotations"]) == boxes(local["annotations"])
    codes = {row["file_name"].rpartition("/")[2]: row["error_code"] for row in found["images"] if row["error_code"]}
    assert codes == {"none.png": "read_error", "page.png": "unsupported_type"}
    assert len(found["images"]) == len(urls)


async def test_private_hosts_are_rows_unless_they_are_allowed(make: MakeConfig, site: Site, tmp_path: Path):
    config = make(source=listed(tmp_path, sample_urls(site)[:2], allow_private_hosts=False))
    summary = await annotate(config)
    assert summary.totals.images_failed == 2
    errors = [row["error"] for row in tables(tmp_path / "out")["images"]]
    assert all("is at the private address 127.0.0.1; source.allow_private_hosts: true" in error for error in errors)
    assert site.asked == {}


async def test_what_can_go_as_its_url_is_not_uploaded(make: MakeConfig, site: Site, tmp_path: Path):
    urls = sample_urls(site)

    def fetch(url: str) -> bytes:
        return httpx.get(url).raise_for_status().content

    with Emulator(fetch=fetch) as emulator:
        model = {"base_url": emulator.url, "transport": "url"}
        summary = await annotate(make(source=listed(tmp_path, urls), model=model))
        uploaded = {upload.mime_type for upload in emulator.books.uploads}
        assert summary.is_all_ok
        images = tables(tmp_path / "out")["images"]
        plain = {
            row["image_id"]
            for row in images
            if row["mime_type"] == row["sent_mime_type"] in ("image/jpeg", "image/png", "image/webp")
            and row["exif_orientation"] == 1
        }
        sent_as_files = {upload.sha256 for upload in emulator.books.uploads}
        assert len(plain) > 5
        assert not plain & sent_as_files
        assert uploaded
    await annotate(make(output={"uri": str(tmp_path / "local")}))
    local = tables(tmp_path / "local")["annotations"]
    assert len(tables(tmp_path / "out")["annotations"]) == len(local)


async def test_what_the_service_cannot_fetch_is_uploaded(
    make: MakeConfig, emulator: Emulator, site: Site, tmp_path: Path
):
    """This emulator has no way to fetch anything."""
    summary = await annotate(make(source=listed(tmp_path, sample_urls(site)), model={"transport": "url"}))
    assert summary.is_all_ok
    assert len(emulator.books.uploads) == len({row["image_id"] for row in tables(tmp_path / "out")["images"]})
    refused = [question for question in emulator.books.questions if question.status == 400]
    assert len(refused) > 10
    assert all(row["status"] == "ok" for row in tables(tmp_path / "out")["responses"])


async def test_files_of_a_folder_are_uploaded_whatever_the_transport(make: MakeConfig, emulator: Emulator):
    assert (await annotate(make(source={"uri": str(SAMPLES), "limit": 3}, model={"transport": "url"}))).is_all_ok
    assert {question.status for question in emulator.books.questions} == {200}
