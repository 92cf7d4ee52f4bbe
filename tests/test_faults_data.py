"""Sources that are broken, strange or hostile: each image gets its row, and nothing but the source is ever sent."""

import asyncio
import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import numpy as np
import pillow_heif
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixscribe.config import RunConfig, SourceConfig
from pixscribe.emulator import Emulator
from pixscribe.engine import engine
from pixscribe.errors import ConfigError, DecodeError, ReadError
from pixscribe.image import ImageRules, prepare_image
from pixscribe.reading import read_image
from pixscribe.run import RunSummary, labeller_of, open_run, publish, scan_source
from pixscribe.source import scan, write_manifest
from pixscribe.storage import open_storage
from pixscribe.tables import ANNOTATIONS, IMAGES, RESPONSES
from tests.conftest import ROOT, SAMPLES, MakeConfig, annotate
from tests.test_image import encoded, exif_block, gif, png, png_chunk, small_png

DETECT = [{"name": "objects", "kind": "detect"}]
RED = (220, 20, 20)
SAMPLE = next(path for path in sorted(SAMPLES.rglob("*.png"))).read_bytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def distinct_png(number: int) -> bytes:
    """One pixel, and a content of its own."""
    return small_png(png_chunk(b"tEXt", b"number\0" + str(number).encode()))


def rows_of(config: RunConfig, table: str = "images") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(f"{config.output.uri}/{table}").to_pylist()
    return rows


def errors_of(config: RunConfig) -> dict[str, str | None]:
    return {row["file_name"]: row["error_code"] for row in rows_of(config)}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def annotate_changing(config: RunConfig, after_scan: Callable[[], object]) -> RunSummary:
    """`annotate`, with something happening to the source after the scan."""
    async with open_run(config) as run:
        shards = scan_source(run)
        after_scan()
        for shard in shards:
            await engine().run(labeller_of(run).label(shard))
        return publish(run)


# D1 and D2: the source changes under the run


async def test_d01_an_image_deleted_after_the_scan_is_a_row_and_the_rest_goes_on(make: MakeConfig, source: Path):
    fill(source, {"gone.png": SAMPLE + b"1", "moved/a.png": SAMPLE + b"2", "stays.png": SAMPLE + b"3"})

    def vanish() -> None:
        (source / "gone.png").unlink()
        (source / "moved").rename(source / "elsewhere")

    config = make(source={"uri": str(source)}, prompts=DETECT)
    summary = await annotate_changing(config, vanish)
    assert errors_of(config) == {"gone.png": "read_error", "moved/a.png": "read_error", "stays.png": None}
    assert summary.totals.errors == {"read_error": 2}
    assert "No such file" in next(row["error"] for row in rows_of(config) if row["file_name"] == "gone.png")


async def test_d01_a_key_deleted_after_the_scan_is_a_row_too(make: MakeConfig, bucket: pafs.S3FileSystem):
    for name in ("gone.png", "stays.png"):
        with bucket.open_output_stream(f"images/d01/{name}") as stream:
            stream.write(SAMPLE + name.encode())
    config = make(source={"uri": "s3://images/d01"}, prompts=DETECT)
    await annotate_changing(config, lambda: bucket.delete_file("images/d01/gone.png"))
    assert errors_of(config) == {"gone.png": "read_error", "stays.png": None}


async def test_d02_a_file_replaced_after_the_scan_is_measured_hashed_and_sent_as_it_then_is(
    make: MakeConfig, source: Path, emulator: Emulator
):
    fill(source, {"a.png": encoded(Image.new("RGB", (30, 20), RED), "PNG")})
    after = encoded(Image.new("RGB", (70, 50), RED), "PNG")
    config = make(source={"uri": str(source)}, prompts=DETECT)
    await annotate_changing(config, lambda: (source / "a.png").write_bytes(after))
    [row] = rows_of(config)
    assert (row["image_id"], row["size_bytes"], row["width"], row["height"]) == (digest(after), len(after), 70, 50)
    assert [upload.sha256 for upload in emulator.books.uploads] == [digest(after)]


async def test_d02_whatever_a_writer_does_the_row_tells_of_the_bytes_that_were_sent(
    make: MakeConfig, source: Path, emulator: Emulator
):
    """Ten names are replaced all the time, by one of two pictures of different sizes."""
    pictures = {encoded(Image.new("RGB", size, RED), "PNG"): size for size in ((30, 20), (70, 50))}
    names = [f"{index}.png" for index in range(10)]
    fill(source, dict.fromkeys(names, next(iter(pictures))))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for name, data in zip(names, [*pictures] * 5, strict=True):
                (source / f".{name}.tmp").write_bytes(data)
                (source / f".{name}.tmp").replace(source / name)

    config = make(source={"uri": str(source)}, prompts=DETECT)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        await annotate(config)
    finally:
        stop.set()
        writer.join()
    sizes = {digest(data): size for data, size in pictures.items()}
    rows = rows_of(config)
    assert [row["file_name"] for row in rows] == names
    assert all((row["width"], row["height"]) == sizes[row["image_id"]] for row in rows)
    assert {upload.sha256 for upload in emulator.books.uploads} == {row["image_id"] for row in rows}


def test_d02_a_file_that_grows_while_it_is_read_is_whole_or_refused(source: Path):
    path = source / "a.png"
    path.write_bytes(b"")
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            for _ in range(20_000):
                if stop.is_set():
                    break
                file.write(b"x" * 4096)

    writer = threading.Thread(target=append)
    writer.start()
    codes = set()
    try:
        for _ in range(30):
            try:
                assert len(read_image(f"file://{path}")) % 4096 == 0
            except ReadError as error:
                codes.add(error.code)
    finally:
        stop.set()
        writer.join()
    assert codes <= {"changed_during_run"}


@pytest.mark.parametrize("fate", ["rewritten", "deleted", "untouched"])
async def test_d02_an_image_that_has_to_be_uploaded_again_is_compared_with_what_was_uploaded(
    make: MakeConfig, source: Path, emulator: Emulator, fate: str
):
    path = source / "a.png"
    path.write_bytes(SAMPLE)

    async def change() -> None:
        while not emulator.books.questions:
            await asyncio.sleep(0.01)
        if fate == "rewritten":
            path.write_bytes(encoded(Image.new("RGB", (9, 9), RED), "PNG"))
        if fate == "deleted":
            path.unlink()

    # the first question hangs, and while it does the source changes
    emulator.script("timeout", "file_gone_403")
    config = make(source={"uri": str(source)}, prompts=DETECT, retry={"timeout_s": 1})
    await asyncio.gather(annotate(config), change())
    codes = {"rewritten": "changed_during_run", "deleted": "read_error", "untouched": None}
    assert errors_of(config) == {"a.png": codes[fate]}
    assert {upload.sha256 for upload in emulator.books.uploads} == {digest(SAMPLE)}


# D3: many


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def grow(folder: Path, folders: range) -> None:
    """A thousand names of one empty file in each folder."""
    empty = folder / "first.txt"
    empty.touch()
    for index in folders:
        (folder / f"{index:03d}").mkdir()
        for number in range(1000):
            os.link(empty, folder / f"{index:03d}" / f"{number:04d}.jpg")


def test_d03_the_memory_of_a_scan_does_not_grow_with_the_tree(source: Path, tmp_path: Path):
    config, counts = SourceConfig(uri=str(source)), list[int]()
    grow(source, range(2))
    small_bytes = peak_bytes(lambda: counts.append(sum(1 for _ in scan(config))))
    grow(source, range(2, 20))
    large_bytes = peak_bytes(lambda: counts.append(sum(1 for _ in scan(config))))
    assert counts == [2_000, 20_000]
    assert large_bytes < 1.5 * small_bytes + 100_000
    # a manifest is written in groups of 8192 rows, of which two are held at a time
    storage = open_storage(str(tmp_path / "out"))
    assert peak_bytes(lambda: write_manifest(storage, "manifest.parquet", config, 256)) < 7_000_000


def test_d03_a_deep_tree_is_scanned_to_its_end(source: Path):
    """1500 folders inside one another, which is less than a path may hold and more than Python recurses."""
    here = os.open(source, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("a.png", os.O_CREAT, dir_fd=here))
    finally:
        os.close(here)
    try:
        [ref] = scan(SourceConfig(uri=str(source)))
        assert ref.file_name == "d/" * 1500 + "a.png"
    finally:
        subprocess.run(["rm", "-rf", source], check=True)  # pytest's own removal recurses too


def put_object(port: int, key: str, data: bytes) -> None:
    """Under exactly this key, which Arrow would put in order."""
    url, headers = f"http://127.0.0.1:{port}/{quote(key)}", {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, data, headers, method="PUT"), timeout=30).close()


def test_d03_a_bucket_is_listed_beyond_its_first_page(bucket: pafs.S3FileSystem, s3_port: int):
    keys = [f"images/d03/{number:04d}.jpg" for number in range(1050)]
    for key in keys:
        put_object(s3_port, key, b"")
    found = [ref.uri for ref in scan(SourceConfig(uri="s3://images/d03"))]
    assert found == [f"s3://{key}" for key in keys]


# D4: one content, many names


async def test_d04_a_content_is_uploaded_and_paid_for_once_over_all_shards(
    make: MakeConfig, source: Path, emulator: Emulator
):
    fill(source, {f"{index}/{'copy ' * index}.png": SAMPLE for index in range(7)})
    config = make(source={"uri": str(source)}, execution={"shard_size": 2}, prompts=DETECT)
    summary = await annotate(config)
    assert (len(emulator.books.uploads), len(emulator.books.questions)) == (1, 1)
    assert (summary.totals.images_ok, summary.totals.requests, summary.totals.reused) == (7, 1, 6)
    boxes: dict[str, list[tuple[float, ...]]] = {row["file_name"]: [] for row in rows_of(config)}
    for row in rows_of(config, "annotations"):
        boxes[row["file_name"]].append((row["xmin"], row["ymin"], row["xmax"], row["ymax"]))
    assert len({tuple(each) for each in boxes.values()}) == 1


# D5: names

HARD_NAMES = [
    *("\u00e9.png", "e\u0301.png", "שלום עולם.png", "\u202egnp.exe.png", "a\u2028b\u200b.png", "😀.png", "日本.png"),
    *("new\nline.png", "tab\t.png", "\x1b[31mred\x7f.png", " leading and trailing .png", "-rf.png", ".hidden.png"),
    *("100%.png", "%2F%00.png", "#1?.png", "a&b;c=d+e.png", "a\\b.png", "quote'\".png", "<script>.png", "{labels}.png"),
    *("x" * 251 + ".png", "\u00e9" * 125 + ".png"),
    *("dt=2024-01-01/a.png", "run=other/prompt=x/a.png", "file_name=b.png", "a.parquet/b.png", "..a/...png"),
]
NOT_UTF8 = {b"\xff\xfe.png": "\\xff\\xfe.png", b"\xed\xa0\x80.png": "\\xed\\xa0\\x80.png"}


async def test_d05_every_hard_name_is_in_every_table_and_becomes_no_column(
    make: MakeConfig, source: Path, emulator: Emulator
):
    fill(source, {name: distinct_png(number) for number, name in enumerate(HARD_NAMES)})
    for number, raw in enumerate(NOT_UTF8):
        Path(os.fsdecode(os.fsencode(source) + b"/" + raw)).write_bytes(distinct_png(1000 + number))
    config = make(source={"uri": str(source)}, execution={"shard_size": 7}, prompts=DETECT)
    summary = await annotate(config)
    names = sorted([*HARD_NAMES, *NOT_UTF8.values()])
    assert summary.is_all_ok
    assert sorted(row["file_name"] for row in rows_of(config)) == names
    for row in rows_of(config):
        assert digest(read_image(row["uri"])) == row["image_id"]
    displayed = [upload.display_name or "" for upload in emulator.books.uploads]
    assert len(displayed) == len(names)
    assert all(0 < len(name) <= 512 for name in displayed)
    for table, schema in {"images": IMAGES, "responses": RESPONSES, "annotations": ANNOTATIONS}.items():
        folder = f"{config.output.uri}/{table}"
        assert pads.dataset(folder, format="parquet").schema.names == schema.names
        assert pads.dataset(folder, format="parquet", partitioning="hive").schema.names == [*schema.names, "run"]
        found = duckdb.execute(f"select * from '{folder}/**/*.parquet'")
        assert [column[0] for column in found.description] == [*schema.names, "run"]
    everywhere = f"select file_name from '{config.output.uri}/images/**/*.parquet'"
    assert sorted(name for (name,) in duckdb.execute(everywhere).fetchall()) == names


async def test_d05_names_that_look_alike_keep_rows_of_their_own(make: MakeConfig, source: Path):
    """A file called by the four characters `\\xff`, and one called by that byte."""
    fill(source, {"\\xff.png": distinct_png(1)})
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.png")).write_bytes(distinct_png(2))
    config = make(source={"uri": str(source)}, prompts=DETECT)
    await annotate(config)
    rows = rows_of(config)
    assert [row["file_name"] for row in rows] == ["\\xff.png", "\\xff.png"]
    assert {row["image_id"] for row in rows} == {digest(distinct_png(1)), digest(distinct_png(2))}


# D6 and D7: what is no plain file


async def test_d06_nothing_hangs_and_nothing_outside_the_source_is_sent(
    make: MakeConfig, source: Path, tmp_path: Path, emulator: Emulator
):
    secret = distinct_png(99)
    fill(tmp_path / "outside", {"secret.png": secret})
    fill(source, {"real.png": distinct_png(1), "folder.png/inner.png": distinct_png(2)})
    links = {
        "again.png": "real.png",
        "dangling.png": "nowhere",
        "loop.png": "loop.png",
        "out.png": "../outside/secret.png",
        "absolute.png": str(tmp_path / "outside/secret.png"),
        "through.png": "self/../../outside/secret.png",
        "zero.png": "/dev/zero",
        "outside": "../outside",
        "self": ".",
        "proc.png": "/proc",
    }
    for name, target in links.items():
        (source / name).symlink_to(target)
    os.mkfifo(source / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket.png"))
    config = make(source={"uri": str(source)}, prompts=DETECT)
    await asyncio.wait_for(annotate(config), timeout=60)
    bad = ["absolute", "dangling", "loop", "out", "pipe", "socket", "through", "zero"]
    good = ["again.png", "folder.png/inner.png", "real.png"]
    assert errors_of(config) == dict.fromkeys([f"{name}.png" for name in bad], "read_error") | dict.fromkeys(good)
    assert {upload.sha256 for upload in emulator.books.uploads} == {digest(distinct_png(1)), digest(distinct_png(2))}


async def test_d06_a_pipe_in_place_of_a_scanned_file_does_not_hang(make: MakeConfig, source: Path):
    fill(source, {"a.png": SAMPLE, "b.png": SAMPLE + b"1"})

    def replace() -> None:
        (source / "a.png").unlink()
        os.mkfifo(source / "a.png")

    config = make(source={"uri": str(source)}, prompts=DETECT)
    await asyncio.wait_for(annotate_changing(config, replace), timeout=60)
    assert errors_of(config) == {"a.png": "read_error", "b.png": None}


def test_d07_a_source_that_may_not_be_listed_is_one_sentence(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("needs to change the user")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"source\.uri: .*cannot be listed: .*Permission denied"):
            list(scan(SourceConfig(uri=str(closed))))
    finally:
        os.seteuid(0)


# D8 to D10: what is no image, or a hostile one


async def test_d08_a_cut_file_of_every_format_is_a_row_and_costs_nothing(
    make: MakeConfig, source: Path, emulator: Emulator
):
    image = Image.new("RGB", (64, 64), RED)
    for name in ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "GIF"):
        data = encoded(image, name)
        fill(source, {f"{name}-half.png": data[: len(data) // 2], f"{name}-last.png": data[:-1]})
    fill(source, {"good.png": SAMPLE, "garbage.png": os.urandom(999), "nothing.png": b""})
    config = make(source={"uri": str(source)}, prompts=DETECT)
    summary = await annotate(config)
    errors = errors_of(config)
    assert errors.pop("good.png") is None
    assert errors.pop("garbage.png") == "unsupported_type"
    assert set(errors.values()) == {"decode_error"}
    assert (summary.totals.images, summary.totals.images_ok, len(emulator.books.questions)) == (19, 1, 1)


def forged(data: bytes, position: int, layout: str, *values: int) -> bytes:
    return data[:position] + struct.pack(layout, *values) + data[position + struct.calcsize(layout) :]


def tiled_tiff(tile_px: int) -> bytes:
    """16 x 16 pixels, which are the corner of one tile. Of a huge one only the start is there."""
    tile = zlib.compress(b"\0" * min(tile_px**2, 1_000_000))
    tags = [
        *((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)),
        *((322, 4, 1, tile_px), (323, 4, 1, tile_px), (324, 4, 1, 8 + 2 + 12 * 10 + 4), (325, 4, 1, len(tile))),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + tile


def pixel_bombs() -> dict[str, bytes]:
    image = Image.new("RGB", (64, 64), RED)
    jpeg, webp, avif, heic = (encoded(image, name) for name in ("JPEG", "WEBP", "AVIF", "HEIF"))
    bmp_header = struct.pack("<IiiHHIIiiII", 40, 100_000, -100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return {
        "png": png(100_000, 100_000, 8, 2, zlib.compress(b"\0" * 1_000_000)),
        "jpeg": forged(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65_500, 65_500),
        "webp": forged(webp, webp.index(b"\x9d\x01\x2a") + 3, "<HH", 16_383, 16_383),
        "gif": forged(gif(1), 6, "<HH", 65_535, 65_535),
        "gif-frame": forged(gif(1), gif(1).index(b",") + 5, "<HH", 65_535, 65_535),
        "bmp": b"BM" + b"\0" * 12 + bmp_header + b"\0" * 100,
        "tiff-tile": tiled_tiff(30_000),
        "heic": forged(heic, heic.index(b"ispe") + 8, ">II", 100_000, 100_000),
        "avif": forged(avif, avif.index(b"ispe") + 8, ">II", 30_000, 30_000),
    }


def unpacking_bombs() -> dict[str, bytes]:
    zeros = zlib.compress(b"\0" * (300 << 20), 9)
    return {
        "text": small_png(png_chunk(b"zTXt", b"name\0\0" + zeros)),
        "international-text": small_png(png_chunk(b"iTXt", b"name\0\1\0en\0nom\0" + zeros)),
        "profile": small_png(png_chunk(b"iCCP", b"name\0\0" + zeros)),
        "frames": gif(40_000),
    }


REFUSE_ALL = """
import json, resource, sys
from pathlib import Path
from pixscribe.errors import DecodeError
from pixscribe.image import ImageRules, prepare_image
def mebibytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def outcome(data, rules):
    try:
        prepare_image(data, rules)
    except DecodeError as error:
        return error.code
files = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
before = mebibytes()
codes = {name: [outcome(data, rules) for rules in (ImageRules(), ImageRules(max_side_px=16))]
         for name, data in files.items()}
print(json.dumps([codes, mebibytes() - before]))
"""


def test_d09_bombs_of_every_format_are_refused_in_little_memory(source: Path):
    fill(source, {**pixel_bombs(), **unpacking_bombs()})
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_ALL, source], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    codes, grown_mib = json.loads(done.stdout)
    assert codes.pop("avif") == ["decode_error"] * 2  # the decoder itself finds the size untrue
    assert codes == dict.fromkeys(codes, ["too_large"] * 2)
    assert grown_mib < 50


def test_d09_a_tile_may_be_larger_than_its_image_but_not_absurdly_so():
    assert prepare_image(tiled_tiff(512), ImageRules()).width == 16
    with pytest.raises(DecodeError, match="16x16 px in tiles of 30000x30000"):
        prepare_image(tiled_tiff(30_000), ImageRules())


def file_in_pieces(kind: str) -> bytes:
    """A whole image with a million empty parts in front of its pixels, where the format allows such."""
    image, count = Image.new("RGB", (64, 64), RED), 1_000_000
    match kind:
        case "jpeg-comments":
            return b"\xff\xd8" + b"\xff\xfe\0\2" * count + encoded(image, "JPEG")[2:]
        case "jpeg-restarts":
            return b"\xff\xd8" + b"\xff\xd0" * count + encoded(image, "JPEG")[2:]
        case "png":
            return small_png(png_chunk(b"prVt", b"") * count)
        case "gif-extensions":
            return gif(1)[:-1] + b"!\xfe\0" * count + b";"
        case "gif-padding":
            return gif(1)[:-1] + b"\0" * count + b";"
        case "webp":
            body = encoded(image, "WEBP")[8:] + b"JUNK\0\0\0\0" * count
            return b"RIFF" + struct.pack("<I", len(body)) + body
    heic = encoded(image, "HEIF")
    end_of_type = int.from_bytes(heic[:4], "big")
    return heic[:end_of_type] + b"\0\0\0\x08free" * count + heic[end_of_type:]


@pytest.mark.parametrize(
    "kind", ["jpeg-comments", "jpeg-restarts", "png", "gif-extensions", "gif-padding", "webp", "heic"]
)
def test_d09_a_file_cut_into_a_million_pieces_is_too_large(kind: str):
    with pytest.raises(DecodeError, match="more than 250000 pieces") as caught:
        prepare_image(file_in_pieces(kind), ImageRules())
    assert caught.value.code == "too_large"


def test_d09_fill_bytes_between_the_segments_of_a_jpeg_are_legal_in_any_number():
    jpeg = encoded(Image.new("RGB", (8, 8), RED), "JPEG")
    assert prepare_image(b"\xff\xd8" + b"\xff" * 1_000_000 + jpeg[2:], ImageRules()).width == 8
    with pytest.raises(DecodeError, match="fill bytes"):
        prepare_image(b"\xff\xd8" + b"\xff" * 1_000_000, ImageRules())


async def test_d09_a_run_over_bombs_and_a_sparse_file_of_5_gigabytes_goes_on(
    make: MakeConfig, source: Path, emulator: Emulator
):
    fill(source, {f"{name}.png": data for name, data in pixel_bombs().items() if name != "avif"})
    fill(source, {"good.png": SAMPLE, "frames.gif": gif(40_000)})
    for name in ("sparse.png", "another.png"):
        with (source / name).open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            file.truncate(5 << 30)
    config = make(source={"uri": str(source)}, prompts=DETECT)
    await asyncio.wait_for(annotate(config), timeout=60)
    errors = errors_of(config)
    assert errors.pop("good.png") is None
    assert errors == dict.fromkeys(errors, "too_large")
    assert [upload.sha256 for upload in emulator.books.uploads] == [digest(SAMPLE)]


async def test_d10_the_content_and_not_the_name_says_what_a_file_is(
    make: MakeConfig, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
):
    called = tmp_path / "gs-was-called"
    fill(tmp_path / "bin", {"gs": f"#!/bin/sh\ntouch {called}\n".encode()})
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    others = {
        "html.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EOF\n(x) run showpage\n",
        "dos-eps.png": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<IIIIIIH", 32, 20, 0, 0, 0, 0, 0xFFFF)
        + b"%!PS-Adobe-3.0 EPSF",
        "svg.png": svg,
        "svg-with-mark.webp": b"\xef\xbb\xbf" + svg,
        "pdf.jpg": b"%PDF-1.7\n1 0 obj <<>> endobj\ntrailer <<>>\n%%EOF\n",
        "json.heic": b'{"error": {"code": 404, "message": "not found"}}',
        "wmf.tif": b"\xd7\xcd\xc6\x9a" + b"\0" * 40,
    }
    image = Image.new("RGB", (40, 40), RED)
    wrong = {"webp.jpg": encoded(image, "WEBP"), "jpeg.png": encoded(image, "JPEG"), "png.heic": encoded(image, "PNG")}
    fill(source, {**others, **wrong})
    config = make(source={"uri": str(source)}, prompts=DETECT)
    await annotate(config)
    assert errors_of(config) == dict.fromkeys(others, "unsupported_type") | dict.fromkeys(wrong)
    sent = {upload.display_name: upload.mime_type for upload in emulator.books.uploads}
    assert sent == {"webp.jpg": "image/webp", "jpeg.png": "image/jpeg", "png.heic": "image/png"}
    assert not called.exists()


# D11 and D12: how pictures are stored

OBJECT = (30, 20, 90, 100)
SHOWN_WH = (240, 160)


def shown() -> Image.Image:
    image = Image.new("RGB", SHOWN_WH, (255, 255, 255))
    image.paste(RED, OBJECT)
    return image


def stored(orientation: int) -> Image.Image:
    """The pixels that this EXIF orientation makes look like `shown`."""
    rows = np.asarray(shown())
    ways = {
        1: rows,
        2: rows[:, ::-1],
        3: rows[::-1, ::-1],
        4: rows[::-1],
        5: rows.swapaxes(0, 1),
        6: rows[:, ::-1].swapaxes(0, 1),
        7: rows[::-1, ::-1].swapaxes(0, 1),
        8: rows[::-1].swapaxes(0, 1),
    }
    return Image.fromarray(np.ascontiguousarray(ways[orientation]))


def turned_pictures() -> dict[str, bytes]:
    files = {}
    for orientation in range(1, 9):
        image, exif = stored(orientation), exif_block(orientation)
        for name in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF"):
            files[f"{name}-{orientation}.png"] = encoded(image, name, exif=exif)
        files[f"TIFF-{orientation}.png"] = encoded(image, "TIFF", tiffinfo={274: orientation})
    return files


def upright_pictures() -> dict[str, bytes]:
    """Files that only seem to be turned."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    with_box = encoded(shown(), "HEIF", exif=exif_block(6))
    return {
        "xmp-only.jpg": encoded(shown(), "JPEG", xmp=xmp),
        "xmp-only.tif": encoded(shown(), "TIFF", tiffinfo={700: xmp}),
        "zero.jpg": encoded(shown(), "JPEG", exif=exif_block(0)),
        "nine.jpg": encoded(shown(), "JPEG", exif=exif_block(9)),
        "garbage.jpg": encoded(shown(), "JPEG", exif=b"Exif\0\0garbage"),
        "nine.png": encoded(shown(), "PNG", exif=exif_block(9)),
        "tag-without-box.heic": forged(with_box, with_box.index(b"irot") + 4, "B", 0),
    }


@pytest.mark.parametrize("max_side_px", [None, 100])
async def test_d11_an_object_lies_in_the_displayed_picture_however_that_is_stored(
    make: MakeConfig, source: Path, max_side_px: int | None
):
    files = {**turned_pictures(), **upright_pictures()}
    fill(source, files)
    config = make(source={"uri": str(source)}, prompts=DETECT, image={"max_side_px": max_side_px})
    assert (await annotate(config)).is_all_ok
    images = {row["file_name"]: row for row in rows_of(config)}
    assert {(row["width"], row["height"]) for row in images.values()} == {SHOWN_WH}
    boxes: dict[str, list[tuple[float, ...]]] = {name: [] for name in files}
    for row in rows_of(config, "annotations"):
        boxes[row["file_name"]].append(tuple(row[side] for side in ("xmin", "ymin", "xmax", "ymax")))
    for name, found in boxes.items():
        assert found == [pytest.approx(OBJECT, abs=3)], name
    for name in turned_pictures():
        assert str(images[name]["exif_orientation"]) in name


def pictures_of_all_kinds() -> dict[str, bytes]:
    image, tail = shown(), [Image.new("RGB", SHOWN_WH, (0, 0, 0))]
    heif = pillow_heif.from_pillow(image)
    heif.add_from_pillow(tail[0])
    several = io.BytesIO()
    heif.save(several)
    deep = (np.asarray(image.convert("L")).astype(np.uint16) * 257).copy()
    return {
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "deep.png": encoded(Image.fromarray(deep), "PNG"),
        "deep.tif": encoded(Image.fromarray(deep), "TIFF"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "palette.gif": encoded(image.convert("P"), "GIF"),
        "bilevel.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "grey-alpha.png": encoded(image.convert("LA"), "PNG"),
        "alpha.webp": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "lab.tif": encoded(Image.new("LAB", SHOWN_WH), "TIFF"),
        **{
            f"animated.{extension}": encoded(image, name, save_all=True, append_images=tail)
            for extension, name in (("gif", "GIF"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("avif", "AVIF"))
        },
        "several.heic": several.getvalue(),
        "two-views.mpo": encoded(image, "MPO", save_all=True, append_images=tail),
        "one-pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "one-pixel.jpg": encoded(Image.new("RGB", (1, 1)), "JPEG"),
        "strip.png": encoded(Image.new("RGB", (193, 31237)), "PNG"),
    }


async def test_d12_every_kind_of_picture_is_accepted_with_its_size_or_refused(make: MakeConfig, source: Path):
    files = pictures_of_all_kinds()
    fill(source, files)
    config = make(source={"uri": str(source), "include": ["*"]}, prompts=DETECT)
    await annotate(config)
    rows = {row["file_name"]: row for row in rows_of(config)}
    assert {name: row["error_code"] for name, row in rows.items() if row["error_code"]} == {
        "lab.tif": "unsupported_type"
    }
    odd = {"one-pixel.png": (1, 1), "one-pixel.jpg": (1, 1), "strip.png": (193, 31237), "lab.tif": (None, None)}
    assert {name: (row["width"], row["height"]) for name, row in rows.items()} == dict.fromkeys(files, SHOWN_WH) | odd
    flagged = {row["file_name"] for row in rows_of(config, "annotations") if "first_frame" in row["flags"]}
    assert flagged == {name for name in files if name.startswith("animated")} | {"several.heic"}
    for row in rows_of(config, "annotations"):
        assert 0 <= row["xmin"] < row["xmax"] <= row["width"]
        assert 0 <= row["ymin"] < row["ymax"] <= row["height"]


# D13: nothing


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"include": ["*.xyz", "none/"]}, id="glob-without-match"),
        pytest.param({"include": []}, id="no-glob"),
        pytest.param({"exclude": ["*"]}, id="all-excluded"),
    ],
)
async def test_d13_nothing_to_do_is_said_before_anything_is_written(
    make: MakeConfig, source: Path, settings: dict[str, Any]
):
    fill(source, {"a.png": SAMPLE})
    config = make(source={"uri": str(source), **settings})
    with pytest.raises(ConfigError, match=r"source\.uri: '.*' holds no image that source\.include"):
        await annotate(config)
    assert not Path(config.output.uri).exists()


async def test_d13_an_empty_folder_holds_nothing_to_do(make: MakeConfig, source: Path):
    (source / "empty.png").mkdir()
    with pytest.raises(ConfigError, match="holds no image"):
        await annotate(make(source={"uri": str(source)}))


async def test_d13_folder_markers_of_a_bucket_are_no_images_and_empty_objects_are_rows(
    make: MakeConfig,
    bucket: pafs.S3FileSystem,
    s3_port: int,
):
    markers = ["images/d13/", "images/d13/set.png/", "images/d13/other/"]
    objects = {"images/d13/a.png": SAMPLE, "images/d13/empty.png": b"", "images/d13/set.png/b.png": SAMPLE}
    for key, data in {**dict.fromkeys(markers, b""), **objects}.items():
        put_object(s3_port, key, data)
    config = make(source={"uri": "s3://images/d13"}, prompts=DETECT)
    await annotate(config)
    assert errors_of(config) == {"a.png": None, "empty.png": "decode_error", "set.png/b.png": None}
    with pytest.raises(ConfigError, match="holds no image"):
        await annotate(make(source={"uri": "s3://images/d13/other"}))


async def test_d13_a_key_that_no_path_could_be_is_a_row_or_an_image_and_ends_nothing(
    make: MakeConfig,
    bucket: pafs.S3FileSystem,
    s3_port: int,
):
    keys = ["images/keys/a.png", "images/keys//double.png", "images/keys/../up.png", "images/keys/./here.png"]
    for key in keys:
        put_object(s3_port, key, SAMPLE)
    config = make(source={"uri": "s3://images/keys"}, prompts=DETECT)
    await annotate(config)
    errors = errors_of(config)
    assert errors["a.png"] is None
    assert set(errors.values()) <= {None, "read_error"}
    assert pa.types.is_string(pq.read_table(f"{config.output.uri}/images").schema.field("file_name").type)
