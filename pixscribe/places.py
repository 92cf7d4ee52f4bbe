"""Which files a source's URI names, when it names files and no folder, and the exact URIs of what they hold.

The URI of the configuration is plain text; an exact URI is percent-encoded, and may end in a fragment that names a part
of a file: `file:///x/a%20b.tar#offset=512&size=99`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from urllib.parse import quote, unquote_to_bytes, urlencode

from pixscribe.errors import ConfigError, OutputError
from pixscribe.storage import Storage, open_storage

MAX_FILES = 1_000_000
"""A brace range that names more is a slip of the finger."""
_SUFFIX = re.compile(r"\.(?:(?:csv|jsonl|txt)(?:\.gz)?|parquet|tar)", re.IGNORECASE)
_PACKED_TAR = re.compile(r"\.(?:tar\.\w+|tgz|tbz2?|txz)", re.IGNORECASE)
_SPECIAL = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
_PART = re.compile(r"(?:offset|column)=")
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that lists or holds images: its exact URI, and its name below the folders without wildcards."""

    uri: str
    name: str

    @property
    def stem(self) -> str:
        """The name without its suffix: what the names of the images in it begin with."""
        return self.name.rsplit(".", 1)[0]


def names_files(uri: str) -> bool:
    """Whether a source's URI names a manifest, Parquet files or tar files. Raises `ConfigError` for a packed tar."""
    last = uri.rpartition("/")[2]
    if "://" not in uri.removeprefix("file://") and os.path.isdir(_plain_path(uri)):  # noqa: PTH112
        return False
    if _ends_in(_PACKED_TAR, last):
        raise ConfigError(
            f"source.uri: {uri!r} is a compressed tar, in which no image can be read by itself; decompress it to a .tar"
        )
    return _ends_in(_SUFFIX, last)


def find_files(uri: str) -> Iterator[SourceFile]:
    """The files in order: braces (`{000..009}`, `{a,b}`) as written, `*`, `?` and `[...]` by name, never across `/`.

    A name without wildcards comes whether or not there is such a file. Raises `ConfigError` if nothing matches, or
    what lists the folders fails.
    """
    if not _SPECIAL.search(uri) or _is_there(uri):
        yield _source_file(uri, uri.rpartition("/")[2])
        return
    is_empty = True
    root = _fixed_part(uri)
    _check_count(uri)
    for pattern in _expand_braces(uri):
        for path in _find(uri, root, pattern[len(root) :]):
            is_empty = False
            yield _source_file(root + path, path)
    if is_empty:
        raise ConfigError(f"source.uri: {uri!r} matches no file")


def exact_uri(uri: str) -> str:
    """The percent-encoded form of a plain URI of the configuration, or of a path."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return file_uri(os.fsencode(os.path.abspath(_plain_path(uri))))  # noqa: PTH100 (resolves no `..` of links)
    place, slash, key = rest.partition("/")
    return f"{scheme}://{place}{slash}{quote(os.fsencode(key), safe='/')}"


def file_uri(path: bytes) -> str:
    """The exact URI of an absolute path."""
    return "file://" + quote(path, safe="/")


def with_part(uri: str, **part: str | bytes | int) -> str:
    """The exact URI of a part of a file."""
    return f"{uri}#{urlencode(part, quote_via=quote, safe='')}"


def split_part(uri: str) -> tuple[str, str]:
    """The exact URI of a file, and what names the part of it that is meant; empty if all of it is."""
    file, _, part = uri.partition("#")
    return (file, part) if _PART.match(part) else (uri, "")


def scheme_of(value: bytes) -> str | None:
    """The scheme of a URI in lower case; None for a path."""
    match = _SCHEME.match(value)
    return match[1].decode().lower() if match else None


def plain_name(path: bytes) -> str:
    """A name for the tables: relative, with `/`, without `.` and `..`; bytes that are not UTF-8 as `\\xff`."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".", b"..")]
    return b"/".join(parts).decode("utf-8", "backslashreplace")


def name_of_uri(uri: str) -> str:
    """A name for the tables made of an exact URI: its host or bucket, its path, and the member or row of that file."""
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        return plain_name(unquote_to_bytes(re.split("[?#]", rest, maxsplit=1)[0]))
    place, part = split_part(rest)
    inner = re.search(r"(?:^|&)(?:member|row)=([^&]*)", part)
    return plain_name(unquote_to_bytes(f"{place}/{inner[1] if inner else ''}"))


def _source_file(uri: str, name: str) -> SourceFile:
    return SourceFile(exact_uri(uri), plain_name(os.fsencode(name)))


def _ends_in(suffix: re.Pattern[str], name: str) -> bool:
    return any(match.end() == len(name) and match.start() > 0 for match in suffix.finditer(name))


def _plain_path(uri: str) -> str:
    return uri.removeprefix("file://")


def _is_there(uri: str) -> bool:
    """A local file may well have a bracket in its name."""
    return "://" not in uri.removeprefix("file://") and os.path.lexists(_plain_path(uri))


def _fixed_part(uri: str) -> str:
    """Up to and with the last `/` before the first wildcard."""
    match = _SPECIAL.search(uri)
    return uri[: uri.rfind("/", 0, match.start() if match else len(uri)) + 1]


def _expand_braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _range(match[1], match[2]) if match[1] else match[3].split(","):
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _range(first: str, last: str) -> Iterator[str]:
    """As the shell counts: up or down, as wide as the first is written."""
    low, high = int(first), int(last)
    step = 1 if low <= high else -1
    return (str(number).zfill(len(first)) for number in range(low, high + step, step))


def _check_count(uri: str) -> None:
    found = _BRACES.finditer(uri)
    counts = (abs(int(each[1]) - int(each[2])) + 1 if each[1] else each[3].count(",") + 1 for each in found)
    if prod(counts) > MAX_FILES:
        raise ConfigError(f"source.uri: {uri!r} names more than {MAX_FILES} files")


def _find(uri: str, root: str, pattern: str) -> Iterator[str]:
    if not re.search(r"[*?\[]", pattern):
        yield pattern
        return
    try:
        yield from _matches(open_storage(root or "."), "", pattern.split("/"))
    except (OSError, OutputError) as error:
        raise ConfigError(f"source.uri: {uri!r} cannot be listed: {error}") from error


def _matches(storage: Storage, folder: str, patterns: list[str]) -> Iterator[str]:
    first, *rest = patterns
    is_pattern = re.search(r"[*?\[]", first) is not None
    for name in storage.list(folder) if is_pattern else [first]:
        if name == first or fnmatchcase(name, first):
            path = f"{folder}/{name}".lstrip("/")
            if rest:
                yield from _matches(storage, path, rest)
            elif is_pattern or storage.exists(path):
                yield path
