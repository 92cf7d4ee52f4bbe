import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pixscribe.config import SourceConfig
from pixscribe.errors import ConfigError, DecodeError, ReadError
from pixscribe.manifests import Seen
from pixscribe.reading import read_image
from pixscribe.source import require_images, scan
from pixscribe.types import ImageRef


def refs(path: Path | str, **settings: Any) -> list[ImageRef]:
    return list(scan(SourceConfig(uri=str(path), **settings)))


def names(path: Path | str, **settings: Any) -> list[str]:
    return [ref.file_name for ref in refs(path, **settings)]


def write(path: Path, data: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def listed(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a manifest of a kind."""
    path = folder / f"list.{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = {
        "csv": [",".join(columns), *(",".join(f'"{row[name]}"' for name in columns) for row in rows)],
        "jsonl": [json.dumps(row) for row in rows],
        "txt": [row[columns[0]] for row in rows],
    }[kind.removesuffix(".gz")]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


KINDS = ["csv", "jsonl", "txt", "parquet", "csv.gz", "jsonl.gz", "txt.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_of_any_kind_names_its_images_in_its_own_order(tmp_path: Path, kind: str):
    write(tmp_path / "set/b é.jpg", b"1")
    write(tmp_path / "set/100%25#.jpg", b"22")
    plain, exact = write(tmp_path / "else/c.jpg", b"333"), write(tmp_path / "else/d e.jpg", b"4444")
    values = ["set/b é.jpg", "./set//100%25#.jpg", str(plain), exact.as_uri(), "https://a.b/x%20y/d?size=2"]
    found = refs(listed(tmp_path, kind, [{"path": value, "other": "x"} for value in values]))
    below = str(tmp_path).lstrip("/")
    assert [ref.file_name for ref in found] == [
        *("set/b é.jpg", "set/100%25#.jpg", f"{below}/else/c.jpg", f"{below}/else/d e.jpg", "a.b/x y/d")
    ]
    assert [read_image(ref.uri) for ref in found[:4]] == [b"1", b"22", b"333", b"4444"]
    assert [ref.size_bytes for ref in found] == [1, 2, 3, 4, None]
    assert (found[4].uri, [ref.error for ref in found]) == ("https://a.b/x%20y/d?size=2", [None] * 5)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_columns_may_be_named(tmp_path: Path, kind: str):
    path = listed(tmp_path, kind, [{"url": "http://a/1", "id": "x/../7", "where": "b.jpg"}])
    assert names(path) == ["a/1"]
    assert names(path, name_column="id") == ["x/7"]
    assert names(path, uri_column="where") == ["b.jpg"]
    for key in ("uri_column", "name_column"):
        with pytest.raises(
            ConfigError, match=rf"source\.{key}: 'nope' is no column of 'list.{kind}', which has 'url', "
        ):
            names(path, **{key: "nope"})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_without_a_column_of_images_is_one_sentence(tmp_path: Path, kind: str):
    path = listed(tmp_path, kind, [{"a": "1", "b": "2"}])
    with pytest.raises(ConfigError, match=rf"null finds no column uri, url, .* of 'list\.{kind}', which has 'a', 'b'"):
        require_images(SourceConfig(uri=str(path)))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        pytest.param("a.jsonl", b"\x89PNG\n[1]\n", "does not hold a JSON object in each line", id="no-json"),
        pytest.param("a.csv.gz", b"path\na.jpg\n", "is no whole gzip file: Not a gzipped file", id="not-packed"),
        pytest.param("a.csv.gz", gzip.compress(os.urandom(9000))[:5000], "is no whole gzip file", id="cut"),
        pytest.param(
            "a.parquet", b"PAR1 and no more", "cannot be read: Parquet magic bytes not found", id="no-parquet"
        ),
        pytest.param("a.csv", b"", "which has none", id="empty-csv"),
        pytest.param("a.txt", b"", "holds no image", id="empty-txt"),
        pytest.param("a.jsonl", b"", "holds no image", id="empty-jsonl"),
        pytest.param("a.txt", None, "cannot be read: No such file or directory", id="none"),
    ],
)
def test_a_file_that_is_no_manifest_is_one_sentence(tmp_path: Path, name: str, data: bytes | None, sentence: str):
    if data is not None:
        write(tmp_path / name, data)
    with pytest.raises(ConfigError, match=r"^source\.") as caught:
        require_images(SourceConfig(uri=str(tmp_path / name)))
    assert sentence in str(caught.value)


def errors(path: Path) -> dict[str, str]:
    return {ref.file_name: ref.error for ref in refs(path) if ref.error is not None}


def test_a_bad_line_is_a_row_and_the_rest_goes_on(tmp_path: Path):
    text = write(
        tmp_path / "a.txt", b"1.jpg\n\n2\0.jpg\nftp://x/3.jpg\nhttp:///4.jpg\n..\nhttps://u:p@h/5\n6.jpg\r\n\n\n"
    )
    assert {name: error.partition("; ")[0] for name, error in errors(text).items()} == {
        "a.txt:2": "its line is empty",
        "a.txt:3": "its line holds a NUL character",
        "a.txt:4": "its line has the scheme 'ftp'",
        "a.txt:5": "its line is a URL without a host",
        "a.txt:6": "its line names no file: b'..'",
        "a.txt:7": "its line is a URL with a user or password, which would stand in the tables",
    }
    assert names(text)[0::7] == ["1.jpg", "6.jpg"]
    rows = write(
        tmp_path / "a.csv", 'path,b\n1.jpg,x\n2.jpg\n\n"",x\n"3\n.jpg",x\n4.jpg,"' + "y" * 140_000 + '"\n5.jpg,x\n'
    )
    assert {name: error[:35] for name, error in errors(rows).items()} == {
        "a.csv:3": "its line has 1 columns where the fi",
        "a.csv:4": "its line is empty",
        "a.csv:5": "its line names no image",
        "a.csv:6": "its line names an image with a line",
    }
    assert [name for name in names(rows) if ":" not in name] == ["1.jpg", "4.jpg", "5.jpg"]
    objects = write(
        tmp_path / "a.jsonl", b'{"url": "1.jpg"}\n{"url": \n[]\n\n{"url": 7}\n{"a": "b"}\n{"url": "2.jpg"}\n\n'
    )
    assert {name: error[:20] for name, error in errors(objects).items()} == {
        "a.jsonl:2": "its line is no JSON:",
        "a.jsonl:3": "its line is no JSON ",
        "a.jsonl:4": "its line is empty",
        "a.jsonl:5": "its line has no text",
        "a.jsonl:6": "its line has no text",
    }
    table = listed(tmp_path, "parquet", [{"path": "1.jpg"}, {"path": None}, {"path": "2.jpg"}])
    assert list(errors(table)) == ["list.parquet:2"]


@pytest.mark.parametrize(
    ("name", "start", "head"),
    [pytest.param("a.txt", b"", [], id="txt"), pytest.param("a.txt", b"\xef\xbb\xbf", [], id="mark")],
)
def test_an_empty_first_line_is_a_line(tmp_path: Path, name: str, start: bytes, head: list[str]):
    assert names(write(tmp_path / name, start + b"\n1.jpg\n\n2.jpg\n\n")) == ["a.txt:1", "1.jpg", "a.txt:3", "2.jpg"]
    assert names(write(tmp_path / "a.jsonl", start + b'\n{"url": "1.jpg"}\nx\n')) == ["a.jsonl:1", "1.jpg", "a.jsonl:3"]
    assert names(write(tmp_path / "a.csv", start + b"\nurl\n1.jpg\n\n2.jpg\n")) == ["1.jpg", "a.csv:4", "2.jpg"]


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path):
    rest = "".join(f"b{number}.jpg,y\n" for number in range(500))
    path = write(tmp_path / "a.csv", 'url,text\n1.jpg,x\n"2.jpg,y\n' + rest)
    with pytest.raises(ConfigError, match=r"source\.uri: 'a\.csv' opens a quote in line 3 and does not close it"):
        names(path)
    write(path, 'url,text\n1.jpg,"x\n' + rest * 4000)
    with pytest.raises(ConfigError, match=r"source\.uri: 'a\.csv' opens a quote in line 2 and does not close it"):
        names(path)
    write(path, 'url,text\n1.jpg,x\n2.jpg,"x"y\n3.jpg,x\n')
    assert names(path) == ["1.jpg", "a.csv:3", "3.jpg"]


def test_a_field_may_be_long_and_have_lines_of_its_own(tmp_path: Path):
    text = ("x" * 70 + "\n") * 2500
    path = write(tmp_path / "a.csv", f'url,text\n1.jpg,"{text}"\n2.jpg,"{"y" * 900_000}"\n\n3.jpg,z\n')
    assert names(path) == ["1.jpg", "2.jpg", "a.csv:2504", "3.jpg"]


@pytest.mark.parametrize(
    "line",
    [
        *("file:///x/a%00.jpg", "file:///x/" + "a" * 300 + ".jpg", "s3://[b/x#1.jpg", "s3://[b/x.jpg", "s3:///k.jpg"),
        *("s3://b", "s3://b/", "s3://b/..", "s3://images/%00.jpg", "http://[::1/x.jpg", "http://a b/x.jpg"),
        *("http://h:99999/x.jpg", "http://x..y/a.jpg", "http://" + "a" * 70 + ".com/x.jpg", "https://\u2100.com/a.jpg"),
        *(
            "file:///x/a.jpg#offset=-1&size=2",
            "file:///tmp#offset=0&size=2",
            "file:///tmp#column=a&row=0",
            "file:///tmp",
        ),
    ],
)
def test_a_line_that_names_nothing_is_an_error_of_its_own(bucket: pafs.S3FileSystem, tmp_path: Path, line: str):
    [ref] = refs(write(tmp_path / "a.txt", line))
    if ref.error is None:
        with pytest.raises((ReadError, DecodeError)):
            read_image(ref.uri)


def test_a_nul_is_refused_when_the_list_is_read(tmp_path: Path):
    [ref] = refs(write(tmp_path / "a.txt", "file:///x/a%00.jpg\n"))
    assert ref.error == "its line holds a NUL character"


def test_a_container_of_an_unknown_host_is_refused_when_the_list_is_read(tmp_path: Path):
    """Whoever writes a list must not choose who is shown the credentials of the environment."""
    lines = "abfs://c@acc.dfs.attacker.example/x.jpg\nabfss://c@a%2Eb/x.jpg\naz://c@acc.blob.core.windows.net/y.jpg\n"
    found = refs(write(tmp_path / "a.txt", lines))
    assert [(ref.error or "").partition(";")[0] for ref in found] == [
        "its line has the host 'acc.dfs.attacker.example'",
        "its line has the host 'a.b'",
        "",
    ]


def test_what_looks_like_a_fragment_is_part_of_a_name(tmp_path: Path):
    write(tmp_path / "a#1.jpg", b"1")
    lines = f"s3://b/a#1.jpg\ns3://b/a#2.jpg\nfile://{tmp_path}/a#1.jpg\ns3://b/c.tar#offset=1&size=2&member=d.jpg\n"
    found = refs(write(tmp_path / "a.txt", lines))
    assert [ref.file_name for ref in found] == ["b/a#1.jpg", "b/a#2.jpg", f"{tmp_path}/a#1.jpg"[1:], "b/c.tar/d.jpg"]
    assert (found[2].size_bytes, read_image(found[2].uri)) == (1, b"1")


def test_a_name_that_is_not_utf8_is_read_by_its_bytes(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"y")
    for name, data in (("a.txt", b"\xff.jpg\n"), ("a.csv", b"\xef\xbb\xbfpath\r\n\xff.jpg\r\n")):
        [ref] = refs(write(tmp_path / name, data))
        assert (ref.file_name, read_image(ref.uri)) == ("\\xff.jpg", b"y")


def test_a_line_of_many_megabytes_is_a_row_and_takes_no_memory(tmp_path: Path):
    path = write(tmp_path / "a.txt", b"1.jpg\n" + b"x" * 40_000_000 + b"\n2.jpg\n")
    assert names(path) == ["1.jpg", "a.txt:2", "2.jpg"]


@pytest.mark.parametrize("length", [8_000_000, 30_000])
def test_the_memory_of_a_list_does_not_grow_with_its_lines(tmp_path: Path, length: int):
    path = tmp_path / "a.txt.gz"
    lines = 240_000_000 // length
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(lines):
            file.write(b"%d" % number + b"x" * length + b"\n")
    tracemalloc.start()
    try:
        assert sum(1 for _ in scan(SourceConfig(uri=str(path)))) == lines
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


def test_a_line_is_left_out_only_if_its_uri_and_its_name_were_there_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    lines = "a.jpg\nb.jpg\na.jpg\n./a.jpg\nhttp://h/p?v=1\nhttp://h/p?v=2\nhttp://h/p?v=1\nhttp://h/p\n"
    path = write(tmp_path / "a.txt", lines)
    assert names(path) == ["a.jpg", "b.jpg", "h/p", "h/p?v=2", "h/p"]
    assert caplog.messages == ["a.txt: 3 lines that repeat an earlier one were left out"]
    named = write(tmp_path / "a.csv", "url,id\nhttp://h/1,x\nhttp://h/1,y\nhttp://h/2,x\nhttp://h/1,x\n")
    found = refs(named, name_column="id")
    assert [(ref.file_name, ref.uri[-1]) for ref in found] == [("x", "1"), ("y", "1"), ("x", "2")]


def test_names_lead_nowhere_and_paths_go_where_they_say(tmp_path: Path):
    write(tmp_path / "a.jpg", b"up")
    path = write(tmp_path / "lists/a.txt", "../a.jpg\nhttp://h/%2e%2e/%2E%2E/b\nfile:///../etc/c\n/./d\n")
    assert names(path) == ["a.jpg", "h/b", "etc/c", "d"]
    assert read_image(refs(path)[0].uri) == b"up"


def test_globs_of_the_source_apply_when_they_are_given(tmp_path: Path):
    path = write(tmp_path / "a.txt", "1.jpg\n2\n3.png\n\nx/4.jpg\n")
    assert names(path) == ["1.jpg", "2", "3.png", "a.txt:4", "x/4.jpg"]
    assert names(path, include=["*.jpg"]) == ["1.jpg", "a.txt:4", "x/4.jpg"]
    assert names(path, exclude=["x/", "*.txt:*"], limit=3) == ["1.jpg", "2", "3.png"]


def test_several_manifests_are_read_one_after_the_other(tmp_path: Path):
    for number in (9, 10, 11):
        write(tmp_path / f"part {number}/list-{number:03d}.txt", f"{number}.jpg\n")
    assert names(tmp_path / "part */list-*.txt") == ["10.jpg", "11.jpg", "9.jpg"]
    assert names(tmp_path / "part 1[01]/list-01?.txt") == ["10.jpg", "11.jpg"]
    missing = ["part 11/list-010.txt:end", "part 10/list-011.txt:end"]
    assert names(tmp_path / "part {11..10}/list-0{11,10}.txt") == ["11.jpg", *missing, "10.jpg"]
    with pytest.raises(ConfigError, match="matches no file"):
        names(tmp_path / "part */none-*.txt")
    with pytest.raises(ConfigError, match="names more than 1000000 files"):
        list(refs(tmp_path / "part 9/list-009.{0..9999}{0..9999}.txt"))


def test_a_file_whose_name_has_a_bracket_is_itself(tmp_path: Path):
    assert names(write(tmp_path / "a[1]{2,3}.txt", "1.jpg\n")) == ["1.jpg"]


def test_a_folder_may_be_called_like_a_file(tmp_path: Path):
    write(tmp_path / "set.csv/1.jpg")
    assert names(tmp_path / "set.csv") == names(f"{tmp_path}/set.csv/") == ["1.jpg"]


def test_an_image_folder_of_hugging_face_is_a_folder(tmp_path: Path):
    """Its metadata beside the images is no image; it can also be taken as the manifest, and both find the same."""
    for name in ("train/0001.png", "train/0002.png"):
        write(tmp_path / name)
    metadata = write(tmp_path / "train/metadata.csv", "file_name,text\n0001.png,a cup\n0002.png,a dog\n")
    write(tmp_path / "train/metadata.jsonl", '{"file_name": "0001.png", "text": "a cup"}\n')
    folder = refs(tmp_path / "train")
    assert [ref.file_name for ref in folder] == ["0001.png", "0002.png"]
    assert refs(metadata) == folder


def test_a_manifest_in_a_bucket_is_relative_to_its_place(bucket: pafs.S3FileSystem):
    for key, data in (
        ("lists/set 1/a b.jpg", b"1"),
        ("lists/c%.jpg", b"2"),
        ("lists/set 1/l.txt", b"a b.jpg\n../c%.jpg\n../../../x\ns3://images/lists/set%201/a%20b.jpg\n"),
        ("lists/set 1/l.csv.gz", gzip.compress(b"path\na b.jpg\n")),
    ):
        with bucket.open_output_stream(f"images/{key}", compression=None) as stream:
            stream.write(data)
    found = refs("s3://images/lists/set 1/l.txt")
    assert [(ref.file_name, ref.error) for ref in found] == [
        ("a b.jpg", None),
        ("c%.jpg", None),
        ("l.txt:3", "its line leads out of the bucket"),
        ("images/lists/set 1/a b.jpg", None),
    ]
    assert [read_image(ref.uri) for ref in found if not ref.error] == [b"1", b"2", b"1"]
    assert names("s3://images/lists/*/l*.csv.gz") == names("s3://images/lists/set 1/l.csv.gz") == ["a b.jpg"]


def test_what_was_seen_is_remembered_over_all_batches():
    seen = Seen()
    numbers = np.random.default_rng(7).integers(0, 3000, 20_000).astype(np.uint64)
    fresh = np.concatenate([seen.add(batch) for batch in np.array_split(numbers, 37)])
    first = {int(number): place for place, number in reversed(list(enumerate(numbers)))}
    assert np.flatnonzero(fresh).tolist() == sorted(first.values())
    assert sum(len(run) for run in seen._runs) == len(first)
