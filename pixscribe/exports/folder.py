"""The folder of a data set, which is there whole or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import orjson

from pixscribe.errors import ConfigError, OutputError
from pixscribe.places import split_part
from pixscribe.reading import is_url
from pixscribe.run import TABLES
from pixscribe.storage import Folder, Storage, is_bucket, local_path, reason

MARK = "pixscribe-export.json"
"""The file that says what an export is made of, and that it is one."""


@contextmanager
def new_folder(to: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder beside `to`, which takes its name when the context ends well and is removed when it does not.

    Raises `ConfigError` if there is something under that name which is not to be replaced, `OutputError` for what the
    file system refuses, also inside of the context.
    """
    final = Path(os.path.realpath(to))
    check_free(final, overwrite=overwrite)
    beside = final.parent / f".pixscribe-{uuid4().hex[:12]}.tmp"
    try:
        beside.mkdir(parents=True)
        yield beside
        _put_in_place(beside, final)
    except OSError as error:
        raise OutputError(f"{error.filename or final}: cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_free(to: Path, *, overwrite: bool) -> None:
    """Raise `ConfigError` unless a data set can be put there: nothing, an empty folder, or an export to be replaced."""
    if to.parts and to.parts[0].endswith(":"):  # `s3://bucket`, of which a path leaves `s3:/bucket`
        raise ConfigError(f"--to {to}: should be a folder of this machine")
    try:
        if not to.exists():
            _check_parents(to)
            return
        if not to.is_dir():
            raise ConfigError(f"--to {to}: is a file; give a folder, which may not exist yet")
        is_empty = next(to.iterdir(), None) is None
    except OSError as error:
        raise ConfigError(f"--to {to}: cannot be looked at: {reason(error)}") from error
    if is_empty:
        return
    if not _is_export(to):
        raise ConfigError(f"--to {to}: is not empty, and holds no earlier export ({MARK}) that could be replaced")
    if not overwrite:
        raise ConfigError(f"--to {to}: holds an earlier export; --overwrite replaces the folder with all that is in it")


def _check_parents(to: Path) -> None:
    above = next(parent for parent in to.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"--to {to}: {above} is a file; give a folder, which may not exist yet")


def check_apart(to: Path, output: Storage) -> None:
    """Raise `ConfigError` if the folder lies among the tables of an output, or the output in the folder."""
    if not isinstance(output, Folder):
        return
    place, root = Path(os.path.realpath(to)), Path(os.path.realpath(output.root))
    for folder in (*TABLES, "runs"):
        if place.is_relative_to(root / folder):
            raise ConfigError(f"--to {to}: lies in {folder}/ of the output {root}, which is for its runs alone")
    if root.is_relative_to(place):
        raise ConfigError(f"--to {to}: holds the output {root} of a run that is exported; give another folder")


def check_sources(to: Path, uris: Iterable[str]) -> None:
    """Raise `ConfigError` if replacing the folder would delete a file, or a link, that an exact URI leads to."""
    root = os.path.join(os.fsencode(os.path.realpath(to)), b"")  # noqa: PTH118 (a name may be no text)
    real_path = lru_cache(1000)(os.path.realpath)
    for uri in uris:
        path = b"" if is_url(uri) or is_bucket(uri) else local_path(split_part(uri)[0])
        folder, slash, name = path.rpartition(b"/")
        if not slash or b"\0" in path:
            continue
        at = real_path(folder or slash) + slash + name
        target = os.path.realpath(at) if os.path.islink(at) else at  # noqa: PTH114
        if at.startswith(root) or target.startswith(root):
            raise ConfigError(
                f"--to {to}: holds {os.fsdecode(at)!r}, which the run is about and --overwrite would delete; "
                "give another folder"
            )


def _is_export(folder: Path) -> bool:
    try:
        with (folder / MARK).open("rb") as file:
            said = orjson.loads(file.read(1 << 20))
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(said, dict) and {"format", "runs", "version"} <= said.keys()


def _put_in_place(folder: Path, final: Path) -> None:
    """An empty folder is replaced by the rename itself; an earlier export steps aside until the new one is there."""
    old = folder.with_suffix(".old")
    has_old = final.exists() and next(final.iterdir(), None) is not None
    if has_old:
        final.rename(old)
    try:
        folder.rename(final)
    except OSError:
        if has_old:
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
