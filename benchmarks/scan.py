"""What it takes to list a large source into a manifest: files a second, and the memory of it.

    python -m benchmarks.scan --files 1000000 --objects 1000000

A tree of hard links in 1,000 folders and one folder that holds 200,000, beside `find -printf` and a Python loop over
`os.walk`; and a bucket, beside boto3's paginator. The bucket's server, in a process of its own, only knows how to list:
one that can do more would be what is measured. Memory is the peak of the whole process, interpreter and libraries
included, which is why each part imports for itself what it needs.
"""

import argparse
import os
import socket
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from benchmarks.measure import MB, ROOT, Measured, markdown_table, run_measured, save_results, surroundings

FOLDERS = 1000
LINKS_PER_FILE = 1000
"""Some file systems allow 65,000."""
BUCKET = "images"
SIZE_BYTES = 12
SHARD_SIZE = 256
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True, slots=True)
class Source:
    """Something to list, and other ways to do it."""

    title: str
    count: int
    uri: str
    baselines: dict[str, list[str]]
    environment: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000, help=f"in {FOLDERS} folders")
    parser.add_argument("--flat", type=int, default=200_000, help="in one folder")
    parser.add_argument("--objects", type=int, default=1_000_000, help="in the bucket; 0 leaves it out")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/scan.json")
    for name in ("ours", "walk", "boto", "serve"):
        parser.add_argument(f"--only-{name}", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if only := next((name for name in PARTS if getattr(options, f"only_{name}")), None):
        print(PARTS[only](*getattr(options, f"only_{only}")))
        return
    with tempfile.TemporaryDirectory() as name:
        results = dict(measure_all(Path(name), options))
    print(f"{surroundings()}\n")
    print(report(results))
    numbers = {
        source.title: {"count": source.count, **{name: each.numbers() for name, each in by_name.items()}}
        for source, by_name in results.values()
    }
    save_results(options.json, numbers)


def measure_all(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, tuple[Source, dict[str, Measured]]]]:
    tree, flat = folder / "tree", folder / "flat"
    make_links(tree, options.files, folders=FOLDERS)
    yield "tree", measure(folder, local_source(f"files in {FOLDERS:,} folders", tree, options.files))
    make_links(flat, options.flat, folders=1)
    yield "flat", measure(folder, local_source("files in one folder", flat, options.flat))
    if options.objects:
        with bucket(options.objects) as source:
            yield "bucket", measure(folder, source)


def local_source(what: str, folder: Path, count: int) -> Source:
    baselines = {
        "`find -type f -printf`": ["find", str(folder), "-type", "f", "-printf", "%p %s\n"],
        "`os.walk` and `os.stat`": part("walk", folder),
    }
    return Source(f"{count:,} {what}", count, str(folder), baselines, {})


@contextmanager
def bucket(count: int) -> Iterator[Source]:
    """A bucket that can be listed."""
    with Popen(part("serve", count), stdout=PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            environment = CREDENTIALS | {"AWS_ENDPOINT_URL": url}
            baselines = {"boto3's paginator": part("boto", url)}
            yield Source(f"{count:,} objects in a bucket", count, f"s3://{BUCKET}/all", baselines, environment)
        finally:
            # not SIGTERM, on which it would say something to nobody
            server.kill()


def measure(folder: Path, source: Source) -> tuple[Source, dict[str, Measured]]:
    """Each way to list it, in turn."""
    print(source.title, file=sys.stderr)
    commands = {**source.baselines, "pixscribe, into a manifest": part("ours", source.uri, folder / "out")}
    results = {name: run_measured(command, environment=source.environment) for name, command in commands.items()}
    for name, measured in results.items():
        found = len(measured.stdout.splitlines()) if name.startswith("`find") else int(measured.stdout)
        assert found == source.count, (name, found)
        print(f"{name}: {measured.wall_s:.1f} s", file=sys.stderr)
    return source, results


def report(results: dict[str, tuple[Source, dict[str, Measured]]]) -> str:
    """Ratios to the first way to list the same source."""
    rows = list[list[str]]()
    for source, by_name in results.values():
        baseline = next(iter(by_name.values()))
        for name, each in by_name.items():
            rows.append(
                [
                    f"{source.title}: {name}",
                    f"{each.wall_s:.1f}",
                    f"{source.count / each.wall_s:,.0f}",
                    f"{each.wall_s / baseline.wall_s:.2f}",
                    f"{1e6 * each.cpu_s / source.count:.1f}",
                    f"{each.peak_rss_bytes / MB:.0f}",
                ]
            )
    return markdown_table(["", "s", "a second", "time, ratio", "CPU µs each", "peak RSS MB"], rows)


def make_links(folder: Path, count: int, *, folders: int) -> None:
    """Files that cost no space: names of a few inodes."""
    started_s = time.monotonic()
    per_folder = -(-count // folders)
    for number in range(count):
        below = folder / f"{number // per_folder:05d}"
        path = below / f"{number:09d}.jpg"
        if number % per_folder == 0:
            below.mkdir(parents=True)
        if number % min(per_folder, LINKS_PER_FILE) == 0:
            first = path
            path.write_bytes(b"x" * SIZE_BYTES)
        else:
            os.link(first, path)
    print(f"{count} links in {time.monotonic() - started_s:.0f} s", file=sys.stderr)


def part(name: str, *arguments: object) -> list[str]:
    """The command that runs one of `PARTS` in a process of its own."""
    return [sys.executable, "-m", "benchmarks.scan", f"--only-{name}", *map(str, arguments)]


def scan_ours(uri: str, output: str) -> int:
    from pixscribe.config import SourceConfig
    from pixscribe.source import write_manifest
    from pixscribe.storage import open_storage

    return write_manifest(open_storage(output), f"manifest-{os.getpid()}.parquet", SourceConfig(uri=uri), SHARD_SIZE)


def scan_walk(folder: str) -> int:
    """What one would write: every path and its size, sorted."""
    found = [
        (path, os.stat(path).st_size)  # noqa: PTH116
        for below, _, names in os.walk(folder)
        for path in (f"{below}/{name}" for name in names)
    ]
    return len(sorted(found))


def scan_boto(url: str) -> int:
    import boto3  # type: ignore[import-untyped]

    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="all/")
    return len(sorted((item["Key"], item["Size"]) for page in pages for item in page.get("Contents", ())))


def serve(count: str) -> None:
    """The list operation of S3, and nothing else, until terminated."""
    from aiohttp import web

    number = int(count)
    per_folder = -(-number // FOLDERS)
    keys = [f"all/{each // per_folder:05d}/{each:09d}.jpg" for each in range(number)]

    async def answer(request: web.Request) -> web.Response:
        key = request.path.removeprefix(f"/{BUCKET}").lstrip("/")
        if key:
            raise web.HTTPNotFound
        return web.Response(body=list_page(keys, dict(request.query)), content_type="application/xml")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    web.run_app(application, sock=listening, print=None)


def list_page(keys: list[str], query: dict[str, str]) -> bytes:
    """One answer to ListObjectsV2."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = unquote(query.get("continuation-token", "")) or query.get("start-after", "")
    place = max(bisect_left(keys, prefix), bisect_right(keys, after))
    lines, last, room = list[str](), "", int(query.get("max-keys", 1000))
    while place < len(keys) and keys[place].startswith(prefix) and len(lines) < room:
        name, slash, _ = keys[place][len(prefix) :].partition(delimiter) if delimiter else (keys[place], "", "")
        if slash:
            last = prefix + name + slash + "\U0010ffff"
            lines.append(f"<CommonPrefixes><Prefix>{escape(prefix + name + slash)}</Prefix></CommonPrefixes>")
            place = bisect_right(keys, last)
        else:
            last = keys[place]
            lines.append(
                f"<Contents><Key>{escape(last)}</Key><LastModified>2026-11-22T10:00:00.000Z</LastModified>"
                f'<ETag>"6f5902ac237024bdd0c176cb93063dc4"</ETag><Size>{SIZE_BYTES}</Size>'
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
            place += 1
    is_cut = place < len(keys) and keys[place].startswith(prefix)
    token = f"<NextContinuationToken>{quote(last)}</NextContinuationToken>" if is_cut else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(lines)}</KeyCount>"
        f"<MaxKeys>{room}</MaxKeys><IsTruncated>{str(is_cut).lower()}</IsTruncated>{token}{''.join(lines)}"
        "</ListBucketResult>"
    ).encode()


PARTS: dict[str, Callable[..., int | None]] = {"ours": scan_ours, "walk": scan_walk, "boto": scan_boto, "serve": serve}


if __name__ == "__main__":
    main()
