import io
import random
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, DecodeError, ReadError
from pixscribe.reading import read_image
from pixscribe.source import require_images, scan
from pixscribe.types import ImageRef
from tests.conftest import SAMPLES, MakeConfig, annotate

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
    assert found[0].uri == f"file://{tmp_path}/shard%200.tar#offset=512&size=700&member=000001.jpg"


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
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"1" * 600})
    [ref] = refs(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ReadError) as caught:
        read_image(ref.uri)
    assert caught.value.code == "changed_during_run"


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
    assert found[17].uri == f"file://{tmp_path}/train-00000-of-00001.parquet#column=image&row=17"
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


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path):
    for data in (b"first", b"second", b"third"):
        [ref] = refs(write_parquet(tmp_path / "a.parquet", [data], [None]))
        assert read_image(ref.uri) == data
    write_parquet(tmp_path / "a.parquet", [], [])
    with pytest.raises(ReadError, match="has no row 0 any more"):
        read_image(ref.uri)


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
