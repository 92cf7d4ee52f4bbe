"""The folder of a data set, which is there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import orjson

from pixscribe.errors import ConfigError, OutputError
from pixscribe.storage import reason

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
