"""Source and output in a bucket, on a real S3 server."""

import gc
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pixscribe.buckets import read_object, read_object_range
from pixscribe.emulator import Emulator
from pixscribe.errors import BudgetExhausted, ConfigError, OutputError, ReadError
from pixscribe.reading import read_image
from pixscribe.run import list_runs
from pixscribe.storage import open_storage, version_of
from tests.conftest import SAMPLES, MakeConfig, annotate


class SimpleServer(ThreadingHTTPServer):
    """Speaks S3 as far as its author needed it: paths are taken as they come, and few conditions are understood."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SimpleHandler)
        self.objects = dict[str, bytes]()
        self.keeps = set[str]()
        """The conditional headers that are understood."""
        self.has_etags = True
        self.listing = b""
        self.conditional_puts = 0


class SimpleHandler(BaseHTTPRequestHandler):
    """What `SimpleServer` answers."""

    server: SimpleServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if "list-type" in query:
            return self.answer(200, self.server.listing)
        if path not in self.server.objects:
            return self.answer(404)
        data = self.server.objects[path]
        if not self.fits("If-Match", path, "If-Match" in self.server.keeps):
            return self.answer(412)
        if asked := self.headers["Range"]:
            start, end = map(int, asked.removeprefix("bytes=").split("-"))
            return self.answer(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})
        return self.answer(200, data)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.conditional_puts += bool(self.headers["If-Match"] or self.headers["If-None-Match"])
        is_kept = {"If-Match", "If-None-Match"} & self.server.keeps
        if is_kept and not all(self.fits(name, self.path, name in is_kept) for name in ("If-Match", "If-None-Match")):
            return self.answer(412)
        self.server.objects[self.path] = data
        return self.answer(200)

    def do_POST(self) -> None:
        """Of these, only the removal of objects is asked for."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        keys = re.findall("<Key>([^<]*)</Key>", body)
        for key in keys:
            del self.server.objects[f"{self.path.partition('?')[0]}/{key}"]
        said = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self.answer(200, f"<DeleteResult>{said}</DeleteResult>".encode())

    def fits(self, name: str, path: str, is_understood: bool) -> bool:
        """Whether a condition is met, or not understood."""
        said = self.headers[name]
        if not said or not is_understood:
            return True
        return path not in self.server.objects if said == "*" else said == self.etag(path)

    def etag(self, path: str) -> str:
        """Of what is there, else nothing."""
        data = self.server.objects.get(path)
        return "" if data is None else f'"{hashlib.md5(data).hexdigest()}"'

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """With the headers that every client of S3 wants."""
        etag = self.etag(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        for name, value in (
            (headers or {}) | ({"ETag": etag} if etag and (self.server.has_etags or self.command == "PUT") else {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleServer]:
    """A server of that kind, as the environment names it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with SimpleServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def put(filesystem: pafs.S3FileSystem, key: str, data: bytes) -> None:
    with filesystem.open_output_stream(key) as stream:
        stream.write(data)


async def test_a_bucket_gives_the_same_tables_as_a_folder(make: MakeConfig, bucket: pafs.S3FileSystem, tmp_path: Path):
    for path in SAMPLES.rglob("*"):
        if path.is_file():
            put(bucket, f"images/set 1/{path.relative_to(SAMPLES)}", path.read_bytes())
    local = await annotate(make(), run_id="r")
    config = make(source={"uri": "s3://images/set 1/"}, output={"uri": "s3://tables/runs"})
    remote = await annotate(config, run_id="r")
    assert remote.totals.images == local.totals.images
    for table in ("images", "annotations"):
        there = pq.read_table(f"tables/runs/{table}", filesystem=bucket)
        here = pq.read_table(tmp_path / "out" / table)
        drop = ["uri"] if table == "images" else []
        assert there.drop_columns(drop).equals(here.drop_columns(drop))


async def test_hard_names_in_a_bucket_come_back_exactly(make: MakeConfig, bucket: pafs.S3FileSystem):
    data = next(SAMPLES.rglob("*.png")).read_bytes()
    names = ["a b.png", "100%25.png", "#1?.png", "\u00e9.png", "dt=1/z.png", "😀.png"]
    for name in names:
        put(bucket, f"images/hard/{name}", data)
    config = make(source={"uri": "s3://images/hard"}, output={"uri": "s3://tables/hard"})
    summary = await annotate(config)
    assert summary.is_all_ok
    images = pq.read_table("tables/hard/images", filesystem=bucket).to_pandas()
    assert sorted(images.file_name) == sorted(names)
    assert set(images.image_id) == {hashlib.sha256(data).hexdigest()}


async def test_a_bucket_that_is_not_there_is_one_sentence(make: MakeConfig, bucket: pafs.S3FileSystem):
    with pytest.raises(ConfigError, match=r"source\.uri: 's3://none/x'"):
        await annotate(make(source={"uri": "s3://none/x"}))
    with pytest.raises(OutputError, match=r"s3://none/out/.*cannot be written"):
        await annotate(make(output={"uri": "s3://none/out"}))


def test_a_write_to_a_bucket_that_fails_half_way_leaves_nothing(bucket: pafs.S3FileSystem):
    storage = open_storage("s3://tables/half")

    def write_half(size_bytes: int) -> None:
        with storage.create("a.parquet") as file:
            file.write(bytes(size_bytes))
            raise RuntimeError

    for size_bytes in (10, 30_000_000):
        with pytest.raises(RuntimeError):
            write_half(size_bytes)
        gc.collect()
        assert storage.list("") == []


def test_a_key_can_be_written_listed_read_and_deleted(bucket: pafs.S3FileSystem):
    storage = open_storage("s3://tables/keys")
    storage.write("runs/a/run.json", b"{}")
    assert (storage.list("runs"), storage.exists("runs/a/run.json"), storage.read("runs/a/run.json")) == (
        ["a"],
        True,
        b"{}",
    )
    storage.delete("runs/a/run.json")
    assert not storage.exists("runs/a/run.json")
    assert storage.list("nothing/here") == []


async def test_a_stopped_run_in_a_bucket_is_taken_up_and_pays_for_nothing_twice(
    make: MakeConfig, emulator: Emulator, bucket: pafs.S3FileSystem
):
    output = {"uri": "s3://tables/stopped"}
    with pytest.raises(BudgetExhausted):
        await annotate(make(output=output, limits={"budget_usd": 0.12, "concurrency": 4}))
    [run] = list_runs(output["uri"])
    storage = open_storage(output["uri"])
    assert storage.list(f"runs/{run['run']}/journal") != []
    summary = await annotate(make(output=output))
    assert (summary.run, summary.is_all_ok) == (run["run"], True)
    assert len(emulator.books.questions) == summary.totals.requests == len({q.digest for q in emulator.books.questions})
    assert storage.list(f"runs/{run['run']}/journal") == []


async def test_a_finished_run_in_a_bucket_that_is_run_again_asks_nothing(
    make: MakeConfig, emulator: Emulator, bucket: pafs.S3FileSystem
):
    config = make(output={"uri": "s3://tables/again"})
    await annotate(config)
    emulator.books.reset()
    assert (await annotate(config)).is_all_ok
    assert (emulator.books.questions, emulator.books.uploads) == ([], [])
    left = [info.path for info in bucket.get_file_info(pafs.FileSelector("tables/again/runs", recursive=True))]
    assert not any("lock" in path for path in left)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a.jpg", "/b/a.jpg"),
        ("/a.jpg", "/b//a.jpg"),
        ("%2Fa.jpg", "/b//a.jpg"),
        ("a.jpg%2F", "/b/a.jpg/"),
        ("x//a.jpg", "/b/x//a.jpg"),
        ("a%0A.jpg", "/b/a%0A.jpg"),
        ("a%00.jpg", "/b/a%00.jpg"),
        ("a%2520%23.jpg", "/b/a%2520%23.jpg"),
        ("caf%EF%BF%BD.jpg", "/b/caf%EF%BF%BD.jpg"),
    ],
)
def test_the_object_that_is_read_is_the_one_that_was_asked_for(simple: SimpleServer, key: str, path: str):
    simple.keeps = {"If-Match"}
    simple.objects = {"/b/a.jpg": b"another", "/b/x/a.jpg": b"another", path: b"wanted"}
    uri = f"s3://b/{key}"
    version = version_of(uri)
    assert (read_image(uri), read_object_range(uri, 1, 3, version)) == (b"wanted", b"ant")
    simple.objects[path] = b"wasted"
    with pytest.raises(ReadError, match="changed since it was listed") as caught:
        read_object_range(uri, 1, 3, version)
    assert caught.value.code == "changed_during_run"
    del simple.objects[path]
    with pytest.raises(ReadError, match=r"cannot be read: .*404"):
        read_image(uri)


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("b", "names no object"),
        ("b/", "names no object"),
        ("/a.jpg", "names no bucket"),
        ("b%2Fc/a.jpg", "'b/c' is no name of a bucket"),
        ("b%00/a.jpg", r"'b\\x00' is no name of a bucket"),
        ("@b/a.jpg", "names no bucket"),
        ("../a.jpg", "'..' is no name of a bucket"),
        ("b/caf%E9.jpg", "is not UTF-8"),
        ("b/..", "no request can name"),
        ("b/.", "no request can name"),
        ("b/" + "%2F" * 70_000, "URL too long"),
        ("b/" + "a" * 70_000, "URL too long"),
        ("b/" + "%20" * 32_000, "URL too long"),
        ("b" * 70_000 + "/a.jpg", "is no name of a bucket"),
    ],
)
def test_a_uri_that_leads_to_no_object_is_a_read_error(
    scheme: str, rest: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acc")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9/acc")
    with pytest.raises(ReadError, match=f"cannot be read: .*{said}"):
        read_image(f"{scheme}://{rest}")
    for ask in (read_object, version_of):
        with pytest.raises(OSError, match=said):
            ask(f"{scheme}://{rest}")


@pytest.mark.parametrize(("start", "length"), [(10**20, 1), (2**63 - 1, 2), (2**64 - 1, 1), (-1, 2), (0, -1)])
def test_a_range_that_no_object_has_is_a_read_error(simple: SimpleServer, start: int, length: int):
    simple.objects = {"/b/a.jpg": b"a"}
    with pytest.raises(ReadError, match="no file has"):
        read_object_range("s3://b/a.jpg", start, length)


def test_a_listing_that_cannot_be_gone_on_with_is_refused_and_not_taken_for_whole(simple: SimpleServer):
    page = b"<Contents><Key>a.jpg</Key><Size>3</Size></Contents>"
    simple.listing = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextMarker>a</NextMarker>%s</ListBucketResult>"
    simple.listing %= page
    with pytest.raises(OSError, match="does not say how to ask for the rest"):
        list(open_storage("s3://b").walk())
    with pytest.raises(OutputError, match="does not say how to ask for the rest"):
        open_storage("s3://b").list("")
    simple.listing = b"<R><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>%s</R>" % page
    with pytest.raises(OutputError, match="the same page"):
        open_storage("s3://b").list("")
    simple.listing = b"<R><Contents><Key>a.jpg</Key><Size>large</Size></Contents></R>"
    with pytest.raises(OSError, match="is not understood"):
        list(open_storage("s3://b").walk())


@pytest.mark.parametrize("keeps", [set(), {"If-Match"}, {"If-None-Match"}])
def test_an_output_in_which_no_lock_would_hold_is_refused_before_anything_is_paid(
    simple: SimpleServer, keeps: set[str]
):
    simple.keeps = keeps
    with pytest.raises(OutputError, match=r"s3://b/out: .*no two runs could be kept apart") as caught:
        open_storage("s3://b/out").probe()
    assert "\n" not in str(caught.value)
    assert simple.objects == {}


def test_without_versions_no_lock_would_hold_either(simple: SimpleServer):
    simple.keeps, simple.has_etags = {"If-Match", "If-None-Match"}, False
    with pytest.raises(OutputError, match="no two runs could be kept apart"):
        open_storage("s3://b/out").probe()


def test_that_a_lock_would_hold_is_found_out_once(simple: SimpleServer):
    simple.keeps = {"If-Match", "If-None-Match"}
    open_storage("s3://b/out").probe()
    assert (simple.conditional_puts, simple.objects) == (2, {})
    open_storage("s3://b/other").probe()
    assert (simple.conditional_puts, simple.objects) == (2, {})
