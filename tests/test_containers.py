import io
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixscribe import parquet_images
from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, DecodeError, ReadError
from pixscribe.reading import read_image
from pixscribe.source import require_images, scan
from pixscribe.types import ImageRef
from tests.conftest import ROOT, SAMPLES, MakeConfig, annotate

HUGGING_FACE = (
    b'{"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cup"], "_type": "ClassLabel"}}}}'
)


def refs(path: Path | str, **settings: Any) -> list[ImageRef]:
    return list(scan(SourceConfig(uri=str(path), **settings)))


def names(path: Path | str, **settings: Any) -> list[str]:
    return [ref.file_name for ref in refs(path, **settings)]


def write_tar(path: Path, members: dict[str, bytes], **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **header: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in header.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, images: list[bytes | None], paths: list[str | None], **settings: Any) -> Path:
    """As `datasets` writes it: a struct of bytes and path, its features in the schema's metadata."""
    rows = [{"bytes": data, "path": name} for data, name in zip(images, paths, strict=True)]
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={b"huggingface": HUGGING_FACE},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": rows, "label": [0] * len(rows)}, schema=schema), path, **settings)
    return path


def sample_files() -> list[Path]:
    return sorted(path for path in SAMPLES.rglob("*") if path.is_file())


# tar


FORMATS = [
    pytest.param(tarfile.PAX_FORMAT, id="pax"),
    pytest.param(tarfile.GNU_FORMAT, id="gnu"),
    pytest.param(tarfile.USTAR_FORMAT, id="ustar"),
]


@pytest.mark.parametrize("form", FORMATS)
def test_each_image_of_a_tar_is_found_and_read_by_itself(tmp_path: Path, form: int):
    members = {
        "000001.jpg": b"1" * 700,
        "000001.json": b"{}",
        "./000002.seg.png": b"",
        "dir/é #?%.webp": b"333",
        f"{'long/' * 19}{'x' * 60}.PNG": b"4" * 512,
        "000003.jpg": b"5",
    }
    found = refs(write_tar(tmp_path / "shard 0.tar", members, format=form))
    images = [name for name in members if not name.endswith(".json")]
    assert [ref.file_name for ref in found] == [f"shard 0/{name.removeprefix('./')}" for name in images]
    assert [read_image(ref.uri) for ref in found] == [members[name] for name in images]
    assert [ref.size_bytes for ref in found] == [len(members[name]) for name in images]
    version = r"version=\d+-\d+"
    part = rf"#offset=512&size=700&{version}&member=000001\.jpg"
    assert re.fullmatch(re.escape(f"file://{tmp_path}/shard%200.tar") + part, found[0].uri)


def test_a_member_with_a_long_name_of_pax_or_gnu_is_read(tmp_path: Path):
    name = f"{'ä' * 90}/{'b' * 200}.jpg"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        [ref] = refs(write_tar(tmp_path / "a.tar", {name: b"x"}, format=form))
        assert (ref.file_name, read_image(ref.uri)) == (f"a/{name}", b"x")


def test_shards_are_named_by_ranges_and_by_globs(tmp_path: Path):
    for number in range(12):
        write_tar(tmp_path / f"d{number % 2}/shard-{number:06d}.tar", {f"{number}.jpg": b"x"})
    assert names(tmp_path / "d0/shard-{000002..000003}.tar") == ["shard-000002/2.jpg", "shard-000003.tar:end"]
    assert names(tmp_path / "d*/shard-00000[3-6].tar") == [
        "d0/shard-000004/4.jpg",
        "d0/shard-000006/6.jpg",
        "d1/shard-000003/3.jpg",
        "d1/shard-000005/5.jpg",
    ]
    with pytest.raises(ConfigError, match=r"'shard-000001\.tar' cannot be read: No such file"):
        names(tmp_path / "d0/shard-{000001..000003}.tar")


def test_what_is_no_plain_member_is_a_row_and_leads_nowhere(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "../../up.jpg", b"up")
        add(tar, "/etc/root.jpg", b"root")
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add(tar, "soft.jpg", type=tarfile.SYMTYPE, linkname="../../etc/passwd")
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(tar, "folder.jpg", type=tarfile.DIRTYPE)
        add(tar, "sparse.jpg", b"1", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "s.jpg"})
        add(tar, "good.jpg", b"good")
    found = {ref.file_name: ref.error for ref in refs(path)}
    assert found == {
        "a/up.jpg": "is a member of a tar with the name b'../../up.jpg', which leads out of it",
        "a/etc/root.jpg": "is a member of a tar with the name b'/etc/root.jpg', which leads out of it",
        "a/hard.jpg": "is a link inside a tar",
        "a/soft.jpg": "is a link inside a tar",
        "a/pipe.jpg": "is no regular file (a pipe or device in a tar)",
        "a/s.jpg": "is a sparse member of a tar",
        "a/good.jpg": None,
    }


def test_a_tar_that_is_cut_off_gives_what_is_whole(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"1" * 600, "2.jpg": b"2" * 600})
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 + 1024 + 512 + 100])
    assert [(ref.file_name, ref.error) for ref in refs(path)] == [
        ("a/1.jpg", None),
        ("a/2.jpg", "is cut off: the tar ends before it does"),
    ]
    for rest in (b"cut header", b"x" * 512, bytes(100) + b"ustar" + bytes(407)):
        path.write_bytes(whole[: 512 + 1024] + rest)
        assert names(path) == ["a/1.jpg", "a.tar:end"]
    assert "damaged or cut off at byte 1536" in (refs(path)[1].error or "")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda block: block[:124] + b"\xff" * 12 + block[136:], id="negative-size"),
        pytest.param(lambda block: block[:124] + b"\x80" + b"\xff" * 11 + block[136:], id="size-of-the-universe"),
        pytest.param(lambda block: block[:124] + b"77777777777\0" + block[136:], id="8-gigabytes"),
    ],
)
def test_a_header_that_lies_ends_in_a_row(tmp_path: Path, change: Any):
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"1", "2.jpg": b"2"})
    data = path.read_bytes()
    block = change(data[1024:1536])
    checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
    path.write_bytes(data[:1024] + block[:148] + b"%06o\0 " % checksum + block[156:] + data[1536:])
    found = refs(path)
    assert [bool(ref.error) for ref in found] == [False, True]


@settings(max_examples=150)
@given(
    changes=st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=5),
    length=st.integers(1, 8192),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_no_tar_raises_anything_but_a_config_error(changes: list[tuple[int, int]], length: int, form: int):
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "a.tar", {"a.jpg": b"1" * 600, f"{'é' * 80}/b.jpg": b"2"}, format=form)
        data = bytearray(path.read_bytes()[:length])
        for place, byte in changes:
            data[place % len(data)] = byte
        for start in range(0, len(data) - 511, 512):  # with checksums that are right, so that more is looked at
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        path.write_bytes(data)
        with suppress(ConfigError):
            for ref in refs(path, include=["*"]):
                assert ".." not in ref.file_name.split("/")
                with suppress(ReadError, DecodeError):
                    read_image(ref.uri)


def test_a_tar_that_changed_after_the_scan_is_a_row(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"1" * 600, "2.jpg": b"2" * 600})
    [ref, _] = refs(path)
    write_tar(path, {"2.jpg": b"2" * 600, "1.jpg": b"1" * 600})
    for _ in range(2):
        with pytest.raises(ReadError) as caught:
            read_image(ref.uri)
        assert caught.value.code == "changed_during_run"
        path.write_bytes(path.read_bytes()[:700])


def test_a_tar_may_begin_with_any_name_and_a_packed_one_is_known(tmp_path: Path):
    assert names(write_tar(tmp_path / "a.tar", {"BZ0001.jpg": b"1", "2.jpg": b"2"})) == ["a/BZ0001.jpg", "a/2.jpg"]
    with tarfile.open(tmp_path / "b.tar", "w:bz2") as tar:
        add(tar, "1.jpg", b"1")
    with pytest.raises(ConfigError, match="is packed by bzip2"):
        names(tmp_path / "b.tar")


def test_a_header_of_a_megabyte_takes_no_time(tmp_path: Path):
    records = b"5 a=\n" * 200_000 + b"14 path=b.jpg\n"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    member = tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT)
    padding = bytes(-len(records) % 512)
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + records + padding + member)
    before_s = time.process_time()
    assert names(tmp_path / "a.tar") == ["a/b.jpg"]
    assert time.process_time() - before_s < 1.5


def test_headers_that_lie_near_each_other_are_read_together_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write_tar(tmp_path / "a.tar", {f"{n:03d}.jpg": bytes(100_000) for n in range(100)}).read_bytes()
    ranges: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1] if asked else data
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(part)))
            if asked:
                ranges.append(asked)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(part if self.command == "GET" else b"")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        assert len(refs("s3://b/a.tar")) == 100
        server.shutdown()
    assert len(ranges) < 15


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        pytest.param("a.tar.gz", b"", "is a compressed tar", id="tar-gz"),
        pytest.param("a.tgz", b"", "is a compressed tar", id="tgz"),
        pytest.param("a.tar", b"\x1f\x8b\x08" + bytes(600), "is packed by gzip; decompress it", id="gz-inside"),
        pytest.param("a.tar", b"<html>" * 200, "is no tar file", id="html"),
        pytest.param("a.tar", bytes(10240), "holds no image", id="empty"),
        pytest.param("a.parquet", b"<html>" * 200, "cannot be read: Parquet magic bytes not found", id="parquet"),
    ],
)
def test_what_is_no_container_is_one_sentence(tmp_path: Path, name: str, data: bytes, sentence: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=r"^source\.uri: ") as caught:
        require_images(SourceConfig(uri=str(tmp_path / name)))
    assert sentence in str(caught.value)


# Parquet


def test_the_rows_of_hugging_face_parquet_are_images(tmp_path: Path):
    images: list[bytes | None] = [b"%d" % number * 50 for number in range(200)]
    paths: list[str | None] = [f"{number}.png" if number % 3 else None for number in range(200)]
    found = refs(write_parquet(tmp_path / "train-00000-of-00001.parquet", images, paths, row_group_size=30))
    assert [ref.file_name for ref in found[:3]] == [
        f"train-00000-of-00001/{name}" for name in ("00000000", "1.png", "2.png")
    ]
    place = re.escape(f"file://{tmp_path}/train-00000-of-00001.parquet")
    assert re.fullmatch(place + r"#column=image&row=17&version=\d+-\d+", found[17].uri)
    assert [read_image(ref.uri) for ref in found] == images
    assert [read_image(ref.uri) for ref in reversed(found)] == images[::-1]


def test_images_that_lie_beside_their_parquet_are_read_from_there(tmp_path: Path):
    """`Dataset.to_parquet` leaves `bytes` null, and the path is that of the file."""
    (tmp_path / "b.png").write_bytes(b"bytes")
    paths: list[str | None] = [str(tmp_path / "b.png"), "b.png", None]
    found = refs(write_parquet(tmp_path / "a.parquet", [None, None, None], paths))
    assert [ref.file_name for ref in found] == [f"{tmp_path}/b.png"[1:], "b.png", "a.parquet:3"]
    assert [read_image(ref.uri) for ref in found[:2]] == [b"bytes"] * 2
    some = refs(write_parquet(tmp_path / "some.parquet", [b"x", None], ["x.png", "b.png"]))
    with pytest.raises(ReadError, match="row 1 of the Parquet file holds no bytes"):
        read_image(some[1].uri)


def test_a_column_may_be_plain_bytes_and_a_row_may_be_named(tmp_path: Path):
    table = pa.table({"id": [7, 8, None], "img": [b"a", b"b", None], "image": ["x.jpg", "y.jpg", "z.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert names(tmp_path / "a.parquet") == ["x.jpg", "y.jpg", "z.jpg"]
    found = refs(tmp_path / "a.parquet", uri_column="img", name_column="id")
    assert [ref.file_name for ref in found] == ["7", "8", "a/00000002"]
    assert [read_image(ref.uri) for ref in found[:2]] == [b"a", b"b"]
    with pytest.raises(ReadError, match="row 2 of the Parquet file holds no bytes"):
        read_image(found[2].uri)
    with pytest.raises(
        ConfigError, match=r"source\.uri_column: 'id' of 'a.parquet' holds int64; allowed: text, binary"
    ):
        refs(tmp_path / "a.parquet", uri_column="id")


def test_a_row_group_of_500_megabytes_is_not_held_in_memory(tmp_path: Path):
    path = tmp_path / "a.parquet"
    image = bytes(5_000_000)
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        writer.write_table(pa.table({"image": [image] * 100}, schema=schema), row_group_size=100)
    before, most = pa.total_allocated_bytes(), 0
    for ref in refs(path)[::7]:
        assert len(read_image(ref.uri)) == len(image)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 200_000_000


def test_rows_are_read_by_many_threads_in_any_order(tmp_path: Path):
    images: list[bytes | None] = [b"%d " % number * 20_000 for number in range(900)]
    path = write_parquet(tmp_path / "a.parquet", images, [None] * 900, row_group_size=100)
    found = refs(path)
    order = [number for start in range(0, 900, 90) for number in random.Random(7).sample(range(start, start + 90), 90)]
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda number: read_image(found[number].uri), order))
    assert read == [images[number] for number in order]


def bytes_read() -> int:
    """By this process so far, from anywhere."""
    [line] = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(line.split()[1])


@pytest.mark.parametrize(("shards", "workers"), [(1, 32), (2, 8)])
def test_threads_that_spread_over_more_than_the_window_do_not_begin_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, workers: int
):
    monkeypatch.setattr(parquet_images, "WINDOW_BYTES", 4 * 1024 * 1024)
    path, count = tmp_path / "a.parquet", 600
    table = pa.table({"image": [os.urandom(65_536) for _ in range(count)]})
    pq.write_table(table, path, row_group_size=count, compression="none", use_dictionary=False, write_statistics=False)
    found = refs(path)
    order = [number + shard * count // shards for number in range(count // shards) for shard in range(shards)]
    before = bytes_read()
    with ThreadPoolExecutor(workers) as threads:
        read = list(threads.map(lambda number: read_image(found[number].uri), order))
    assert bytes_read() - before < 8 * path.stat().st_size
    assert read == [table["image"][number].as_py() for number in order]


@pytest.mark.parametrize("row_group_size", [1, 16])
def test_a_small_file_of_large_rows_takes_the_memory_of_one(tmp_path: Path, row_group_size: int):
    """16 rows of 48 MiB, all of zeros, in 27 kB; with a dictionary, they even are one value."""
    table = pa.table({"image": pa.array([bytes(48 << 20)] * 16, pa.large_binary())})
    settings: dict[str, Any] = {"compression": "zstd", "row_group_size": row_group_size, "store_schema": False}
    pq.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=1 << 30, **settings)
    code = f"""
from pathlib import Path
from pixscribe.reading import read_image
assert len(read_image("file://{tmp_path}/a.parquet#column=image&row=3")) == 48 << 20
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert int(done.stdout) < 600  # the sixteen alone are 768


def test_a_row_that_is_too_large_for_an_image_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixscribe.storage.MAX_IMAGE_BYTES", 1000)
    found = refs(write_parquet(tmp_path / "a.parquet", [b"x" * 1001, b"x" * 1000], [None, None]))
    with pytest.raises(DecodeError) as caught:
        read_image(found[0].uri)
    assert caught.value.code == "too_large"
    assert len(read_image(found[1].uri)) == 1000


def test_damage_in_a_parquet_file_costs_the_rows_of_its_group_at_most(tmp_path: Path):
    images: list[bytes | None] = [os.urandom(20_000) for _ in range(200)]
    settings: dict[str, Any] = {"row_group_size": 50, "use_dictionary": False, "write_statistics": False}
    path = write_parquet(tmp_path / "a.parquet", images, [None] * 200, **settings)
    data = bytearray(path.read_bytes())
    place = data.index(images[75] or b"")
    data[place : place + 400_000] = b"\xff" * 400_000
    path.write_bytes(data)
    found = refs(path)
    for _ in range(2):
        for number in (*range(0, 50, 7), *range(150, 200, 7)):
            assert read_image(found[number].uri) == images[number]
        for number in (99, 98, 99):
            with pytest.raises(ReadError):
                read_image(found[number].uri)


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(1, 1500), st.integers(0, 255)), min_size=1, max_size=5))
def test_no_parquet_file_raises_anything_but_a_config_or_read_error(changes: list[tuple[int, int]]):
    """Nor does it end the process: damage mostly lies in the footer here, in numbers that Arrow believes."""
    with tempfile.TemporaryDirectory() as folder:
        images: list[bytes | None] = [b"%d" % number * 50 for number in range(20)]
        path = write_parquet(Path(folder) / "a.parquet", images, ["x.png"] * 20, row_group_size=7)
        data = bytearray(path.read_bytes())
        for place, byte in changes:
            data[-place] = byte
        path.write_bytes(data)
        with suppress(ConfigError):
            for ref in refs(path, limit=30)[::6]:
                with suppress(ReadError, DecodeError):
                    read_image(ref.uri)


def test_a_footer_that_counts_more_rows_than_there_are_is_no_end_of_a_run(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 21}), path, use_dictionary=False, write_statistics=False)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert data.count(b"\x16\x2a", footer) >= 2  # 21 as an i64 of Thrift
    path.write_bytes(data[:footer] + data[footer:].replace(b"\x16\x2a", b"\x16\x32"))
    found = refs(path)
    assert len(found) == 25
    for _ in range(2):
        with pytest.raises(ReadError):
            read_image(found[24].uri)
        assert read_image(found[0].uri) == b"x"


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path):
    old = ""
    for data in (b"first", b"second", b"third"):
        [ref] = refs(write_parquet(tmp_path / "a.parquet", [data], [None]))
        assert read_image(ref.uri) == data
        assert_changed(old)
        old = ref.uri
    write_parquet(tmp_path / "a.parquet", [], [])
    assert_changed(old)
    with pytest.raises(ReadError, match="has no row 0"):
        read_image(f"file://{tmp_path}/a.parquet#column=image&row=0")


def assert_changed(uri: str) -> None:
    if uri:
        with pytest.raises(ReadError) as caught:
            read_image(uri)
        assert caught.value.code == "changed_during_run"


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_object_that_was_replaced_is_never_read_as_what_it_was(bucket: pafs.S3FileSystem, tmp_path: Path, kind: str):
    """Nor are its images taken from what this process has kept of the object before."""
    old, was = "", b""
    for number in (1, 2, 3):
        data = [b"%d" % number + os.urandom(40_000) for _ in range(60)]
        if kind == "tar":
            path = write_tar(tmp_path / "a.tar", {f"{n}.jpg": each for n, each in enumerate(data)})
        else:
            path = write_parquet(tmp_path / "a.parquet", [*data], [None] * 60)
        with bucket.open_output_stream(f"images/replaced.{kind}") as stream:
            stream.write(path.read_bytes())
        found = refs(f"s3://images/replaced.{kind}")
        assert [read_image(ref.uri) for ref in found] == data
        if kind == "tar" or not old:
            assert_changed(old)
        else:  # what is still in memory is what was listed
            assert read_image(old) == was
        old, was = found[7].uri, data[7]


def test_columns_that_cannot_be_meant_are_one_sentence(tmp_path: Path):
    path = tmp_path / "a.parquet"
    for name, value in (("url", "a.jpg"), ("image", b"a")):
        pq.write_table(pa.Table.from_arrays([pa.array([value])] * 2, names=[name, name]), path)
        with pytest.raises(
            ConfigError, match=rf"source\.uri_column: '{name}' is the name of 2 columns of 'a\.parquet'"
        ):
            refs(path)
    pq.write_table(pa.table({"image": [{"bytes": {"bytes": b"x"}, "path": "p"}]}), path)
    with pytest.raises(ConfigError, match=r"source\.uri_column: 'image' of 'a\.parquet' holds struct"):
        refs(path)


def test_a_name_with_a_dot_is_not_taken_for_a_field(tmp_path: Path):
    nested = [{"image": b"wrong", "name": "wrong"}]
    table = pa.table({"my": nested, "my.image": [b"right"], "my.name": ["right.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    [ref] = refs(tmp_path / "a.parquet", uri_column="my.image", name_column="my.name")
    assert (ref.file_name, read_image(ref.uri)) == ("right.jpg", b"right")


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        pytest.param("column=nope&row=0", "has no column 'nope' of images", id="no-column"),
        pytest.param("column=n&row=0", "has no column 'n' of images", id="numbers"),
        pytest.param("column=s&row=0", "has no column 's' of images", id="text"),
        pytest.param("column=image&row=2", "has no row 2", id="no-row"),
        pytest.param("column=image&row=" + "9" * 5000, "should be offset and size, or column and row", id="digits"),
        pytest.param("offset=99999999999999999999&size=1", "should be offset and size", id="beyond-64-bits"),
        pytest.param("offset=999999999999999999&size=1", "ends before byte|cannot be read", id="beyond-the-end"),
        pytest.param("column=%00%ff&row=0", "has no column", id="no-name"),
    ],
)
def test_a_part_that_is_not_there_is_a_read_error(tmp_path: Path, part: str, sentence: str):
    pq.write_table(pa.table({"n": [1, 2], "s": ["a", "b"], "image": [b"x", b"y"]}), tmp_path / "a.parquet")
    with pytest.raises(ReadError, match=sentence):
        read_image(f"file://{tmp_path}/a.parquet#{part}")


@given(part=st.from_regex(r"(offset|column)=[^#]*(&(row|size|version)=[^#]*)*", fullmatch=True))
def test_no_part_raises_anything_but_a_read_error(part: str):
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"n": [1, 2], "s": ["a", "b"], "image": [b"x", b"y"]}), f"{folder}/a.parquet")
        with suppress(ReadError, DecodeError):
            assert isinstance(read_image(f"file://{folder}/a.parquet#{part}"), bytes)


def test_a_path_may_begin_with_two_slashes(tmp_path: Path):
    [ref] = refs(f"/{write_tar(tmp_path / 'a.tar', {'1.jpg': b'1'})}")
    assert read_image(ref.uri) == b"1"


def test_a_file_of_a_fixed_name_is_looked_for_in_every_folder(tmp_path: Path):
    for folder in ("b", "d"):
        write_tar(tmp_path / folder / "s.tar", {"1.jpg": b"1"})
    for folder in ("a", "c", "e"):
        (tmp_path / folder).mkdir()
    assert names(tmp_path / "*/s.tar") == ["b/s/1.jpg", "d/s/1.jpg"]
    with pytest.raises(ConfigError, match="matches no file"):
        names(tmp_path / "*/t.tar")


def test_the_images_table_of_a_run_is_a_manifest(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"1", "2.jpg": b"2"})
    first = refs(path)
    pq.write_table(pa.table({"uri": [ref.uri for ref in first]}), tmp_path / "images.parquet")
    again = refs(tmp_path / "images.parquet")
    assert [read_image(ref.uri) for ref in again] == [b"1", b"2"]
    assert [ref.uri for ref in again] == [ref.uri for ref in first]
    assert [ref.file_name for ref in again] == [f"{str(path)[1:]}/{name}.jpg" for name in (1, 2)]


@pytest.mark.parametrize(
    "part", ["offset=1", "offset=x&size=2", "column=image", "column=&row=-1", "offset=1&row=2&size=3"]
)
def test_a_part_that_says_nothing_is_a_read_error(tmp_path: Path, part: str):
    with pytest.raises(ReadError, match="should be offset and size, or column and row"):
        read_image(f"file://{tmp_path}/a.tar#{part}")


def test_a_part_of_terabytes_is_not_read(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DecodeError) as caught:
        read_image(f"file://{tmp_path}/a.tar#offset=0&size=9999999999999")
    assert caught.value.code == "too_large"


def test_containers_in_a_bucket_are_read_by_ranges(bucket: pafs.S3FileSystem, tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": b"%d" % n * 100_000 for n in range(30)})
    parquet = write_parquet(tmp_path / "b.parquet", [b"%d" % n * 100_000 for n in range(30)], [None] * 30)
    for path in (tar, parquet):
        with bucket.open_output_stream(f"images/in tars/{path.name}") as stream:
            stream.write(path.read_bytes())
    for pattern in ("s3://images/in tars/*.tar", "s3://images/in tars/b.parquet"):
        found = refs(pattern)
        assert found[3].uri.startswith("s3://images/in%20tars/")
        assert [read_image(ref.uri) for ref in found] == [b"%d" % n * 100_000 for n in range(30)]


# the same images in every form


def as_folder(folder: Path) -> str:
    return str(SAMPLES)


def as_csv(folder: Path) -> str:
    lines = [f'"{path}"' for path in sample_files()]
    (folder / "list.csv").write_text("\n".join(["path", *lines]) + "\n")
    return str(folder / "list.csv")


def as_tar(folder: Path) -> str:
    for number in (0, 1):
        members = {str(path.relative_to(SAMPLES)): path.read_bytes() for path in sample_files()[number::2]}
        write_tar(folder / f"shard-{number:06d}.tar", members)
    return str(folder / "shard-{000000..000001}.tar")


def as_parquet(folder: Path) -> str:
    for number in (0, 1):
        paths = sample_files()[number::2]
        relative: list[str | None] = [str(path.relative_to(SAMPLES)) for path in paths]
        name = f"train-{number:05d}-of-00002.parquet"
        write_parquet(folder / name, [path.read_bytes() for path in paths], relative, row_group_size=5)
    return str(folder / "train-*.parquet")


def boxes(output: Path) -> list[tuple[Any, ...]]:
    rows = pq.read_table(output / "annotations").to_pylist()
    return sorted(
        (row["image_id"], row["prompt"], row["index"], row["label"], row["xmin"], row["ymax"]) for row in rows
    )


async def test_the_samples_give_the_same_boxes_in_every_form(make: MakeConfig, tmp_path: Path):
    found = {}
    for form in (as_folder, as_csv, as_tar, as_parquet):
        folder = tmp_path / form.__name__
        (folder / "in").mkdir(parents=True)
        config = make(source={"uri": form(folder / "in")}, output={"uri": str(folder / "out")})
        summary = await annotate(config)
        found[form.__name__] = (summary.totals.images, summary.totals.images_ok, boxes(folder / "out"))
    assert found["as_folder"][1] > 20
    assert all(each == found["as_folder"] for each in found.values())
