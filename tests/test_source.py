import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, DecodeError, OutputError, ReadError
from pixscribe.reading import read_image
from pixscribe.source import Shard, Shards, count_manifest, read_shard, require_images, scan, write_manifest
from pixscribe.storage import MAX_IMAGE_BYTES, open_storage, read_file_range, version_of

HARD_NAMES = [
    "a b.jpg",
    "a\nb.jpg",
    "100%.jpg",
    "#1?.jpg",
    "\u00e9.jpg",
    "e\u0301.jpg",
    "dt=1/z.jpg",
    "😀.png",
    "שלום.webp",
]


def names(folder: Path, **settings: Any) -> list[str]:
    return [ref.file_name for ref in scan(SourceConfig(uri=str(folder), **settings))]


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def errors(folder: Path) -> dict[str, str | None]:
    return {ref.file_name: ref.error for ref in scan(SourceConfig(uri=str(folder)))}


def test_every_name_comes_back_exactly_and_opens_by_its_uri(tmp_path: Path):
    for name in HARD_NAMES:
        write(tmp_path / name, name.encode())
    refs = list(scan(SourceConfig(uri=str(tmp_path))))
    assert sorted(ref.file_name for ref in refs) == sorted(HARD_NAMES)
    assert all(read_image(ref.uri) == ref.file_name.encode() for ref in refs)


def test_a_name_that_is_not_utf8_is_shown_escaped_and_opens_by_its_uri(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"y")
    [ref] = scan(SourceConfig(uri=str(tmp_path)))
    assert (ref.file_name, ref.uri[-8:], read_image(ref.uri)) == ("\\xff.jpg", "/%FF.jpg", b"y")


def test_the_order_is_that_of_the_whole_relative_names(tmp_path: Path):
    for name in ["a/b.jpg", "a.jpg", "a-1/c.jpg", "B.jpg", "a/a/z.jpg"]:
        write(tmp_path / name)
    assert names(tmp_path) == ["B.jpg", "a-1/c.jpg", "a.jpg", "a/a/z.jpg", "a/b.jpg"]


def test_only_images_are_taken_unless_the_globs_say_otherwise(tmp_path: Path):
    for name in ["a.JPG", "b.txt", "train/c.png", "test/d.png"]:
        write(tmp_path / name)
    assert names(tmp_path) == ["a.JPG", "test/d.png", "train/c.png"]
    assert names(tmp_path, include=["**/*"], exclude=["test/"]) == ["a.JPG", "b.txt", "train/c.png"]
    assert names(tmp_path, limit=1) == ["a.JPG"]


def test_a_sample_is_spread_over_what_the_limit_leaves(tmp_path: Path):
    for number in range(40):
        write(tmp_path / f"{number:02d}.png")
    some = names(tmp_path, limit=16, sample=4)
    # one of each four, of the first sixteen
    assert [int(name[:2]) // 4 for name in some] == [0, 1, 2, 3]
    assert names(tmp_path, limit=16, sample=4) == some
    assert len(names(tmp_path, sample=50)) == 40


def test_what_is_no_file_becomes_a_reference_with_its_reason(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
    found = errors(tmp_path)
    assert list(found) == ["dangling.jpg", "loop.jpg", "pipe.jpg", "socket.jpg"]
    assert all(found.values())


def test_links_to_folders_are_not_followed_and_links_out_of_the_source_are_not_read(tmp_path: Path):
    write(tmp_path / "elsewhere/secret.jpg")
    inside = write(tmp_path / "source/real.jpg").parent
    (inside / "folder.jpg").symlink_to(tmp_path / "elsewhere")
    (inside / "self").symlink_to(inside)
    (inside / "out.jpg").symlink_to(tmp_path / "elsewhere/secret.jpg")
    (inside / "in.jpg").symlink_to("real.jpg")
    assert errors(inside) == {"in.jpg": None, "out.jpg": "is a link that leads out of the source", "real.jpg": None}


def test_a_source_with_nothing_in_it_is_refused_with_what_was_looked_for(tmp_path: Path):
    write(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"holds no image that source\.include \(\*\.jpg, "):
        require_images(SourceConfig(uri=str(tmp_path)))


def test_a_source_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        require_images(SourceConfig(uri=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="is no folder"):
        require_images(SourceConfig(uri=str(write(tmp_path / "a.jpg"))))


@pytest.mark.parametrize("key", ["uri_column", "name_column"])
def test_a_column_of_what_has_none_is_refused(tmp_path: Path, key: str):
    write(tmp_path / "list.txt", b"a.jpg")
    for uri in (tmp_path, tmp_path / "list.txt", tmp_path / "shard.tar"):
        with pytest.raises(ConfigError, match=rf"source\.{key}: only \.csv, \.jsonl and \.parquet files have columns"):
            names(uri, **{key: "path"})


def test_a_file_that_became_a_pipe_after_the_scan_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ReadError, match="no regular file any more"):
        read_image(f"file://{tmp_path}/a.jpg")


def test_a_file_that_is_gone_is_a_read_error(tmp_path: Path):
    with pytest.raises(ReadError, match="cannot be read: No such file or directory"):
        read_image(f"file://{tmp_path}/a.jpg")


def test_a_uri_that_is_not_encoded_is_no_error_of_its_own(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        version_of(f"file://{tmp_path}/\udcff\ud800.jpg")


@pytest.mark.parametrize("path", ["a%00.jpg", "%00", "a.jpg%00.png"])
def test_a_path_that_no_file_can_have_is_a_read_error(tmp_path: Path, path: str):
    for read in (read_image, version_of):
        with pytest.raises(ReadError, match="NUL"):
            read(f"file://{tmp_path}/{path}")


@pytest.mark.parametrize(("start", "length"), [(10**20, 1), (2**63 - 1, 2), (2**64, 1), (-1, 2), (0, -1)])
def test_a_range_that_no_file_has_is_a_read_error(tmp_path: Path, start: int, length: int):
    with pytest.raises(ReadError, match="no file has"):
        read_file_range(os.fsencode(write(tmp_path / "a.tar")), start, length)


def test_a_range_is_of_the_version_that_was_listed_or_refused(tmp_path: Path):
    path = write(tmp_path / "a b.tar", b"0123")
    version = version_of(f"file://{tmp_path}/a%20b.tar")
    assert read_file_range(os.fsencode(path), 1, 2, version) == b"12"
    os.utime(path, ns=(0, 0))
    with pytest.raises(ReadError, match="changed since it was listed") as caught:
        read_file_range(os.fsencode(path), 1, 2, version)
    assert caught.value.code == "changed_during_run"
    assert read_file_range(os.fsencode(path), 1, 2) == b"12"
    with pytest.raises(FileNotFoundError):
        version_of(f"file://{tmp_path}/none.tar")


def test_a_sparse_file_of_terabytes_is_not_read(tmp_path: Path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(DecodeError) as caught:
        read_image(f"file://{tmp_path}/a.jpg")
    assert caught.value.code == "too_large"


def test_a_manifest_gives_back_each_shard(tmp_path: Path):
    for index in range(10):
        write(tmp_path / f"in/{index}.jpg")
    storage = open_storage(str(tmp_path / "out"))
    assert write_manifest(storage, "runs/r/manifest.parquet", SourceConfig(uri=str(tmp_path / "in")), 4) == 10
    assert count_manifest(storage, "runs/r/manifest.parquet") == 10
    shards = list(Shards(10, 4))
    assert shards == [Shard(0, 0, 4), Shard(1, 4, 8), Shard(2, 8, 10)]
    read = [ref for shard in shards for ref in read_shard(storage.uri, "runs/r/manifest.parquet", shard)]
    assert read == list(scan(SourceConfig(uri=str(tmp_path / "in"))))


def test_many_shards_begin_with_small_ones_and_leave_out_what_is_done():
    shards = Shards(1001, 40, frozenset({"00001", "00026"}))
    found = list(shards)
    assert found[:4] == [Shard(0, 0, 16), Shard(2, 32, 40), Shard(3, 40, 80), Shard(4, 80, 120)]
    assert found[-1] == Shard(27, 1000, 1001)
    assert (len(shards), shards.count_images()) == (26, 1001 - 16 - 40)
    everything = list(Shards(1001, 40))
    assert [shard.start for shard in everything[1:]] == [shard.stop for shard in everything[:-1]]
    assert [shard.stop - shard.start for shard in Shards(800, 40)] == [40] * 20


def test_a_manifest_of_several_row_groups_gives_back_each_shard(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    first = write(folder / "00000.jpg")
    for index in range(1, 9000):
        (folder / f"{index:05d}.jpg").hardlink_to(first)
    storage = open_storage(str(tmp_path / "out"))
    write_manifest(storage, "m.parquet", SourceConfig(uri=str(folder)), 1000)
    last = read_shard(storage.uri, "m.parquet", Shard(8, 8000, 9000))
    assert [last[0].file_name, last[-1].file_name] == ["08000.jpg", "08999.jpg"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    storage = open_storage(str(tmp_path))

    def write_half() -> None:
        with storage.create("a/b.parquet") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    storage.write("a/b.parquet", b"whole")
    assert (storage.read("a/b.parquet"), storage.list("a"), storage.exists("a/c")) == (b"whole", ["b.parquet"], False)


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    write(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        open_storage(str(tmp_path / "file")).probe()
