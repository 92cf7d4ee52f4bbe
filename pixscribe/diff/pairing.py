"""Which image of one run is which of the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pixscribe.results import RunResults

Integers = npt.NDArray[np.int64]


class Place(NamedTuple):
    """Where the rows of an image are: the number of its part, and its row there."""

    part: int
    row: int


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The images of a run in the order of its parts, 16 bytes for each.

    Names are kept as Python's 64-bit hashes: of a million, two have the same by a chance of three in 10^8.
    """

    starts: Integers
    """The position of the first image of each part, and at the end how many images there are."""
    names: Integers
    """By `file_name`."""
    exact: Integers
    """By `file_name` and `uri`: for names that a list holds more than once."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def places(self, positions: Integers) -> list[Place]:
        """Of some images, by their positions in the run."""
        parts = np.searchsorted(self.starts, positions, side="right") - 1
        return list(map(Place, parts.tolist(), (positions - self.starts[parts]).tolist()))


def index_images(results: RunResults) -> ImageIndex:
    """Read the names of all images of a run. Raises `OutputError`."""
    sizes, names, exact = [0], [_NONE], [_NONE]
    for (images,) in results.read_parts({"images": ("file_name", "uri")}):
        file_names, uris = (images.column(name).to_pylist() for name in ("file_name", "uri"))
        sizes.append(len(file_names))
        names.append(_hashes(map(hash, file_names), len(file_names)))
        exact.append(_hashes(map(hash, zip(file_names, uris, strict=True)), len(file_names)))
    return ImageIndex(np.cumsum(sizes, dtype=np.int64), np.concatenate(names), np.concatenate(exact))


def pair_images(before: ImageIndex, after: ImageIndex) -> Integers:
    """For each image of `before` the position in `after` of the same `file_name`, or -1.

    Where a name is there more than once, those of the same `uri` belong together, and of the rest the first to the
    first.
    """
    partners = np.full(len(before), -1, dtype=np.int64)
    for keys, others in ((before.exact, after.exact), (before.names, after.names)):
        alone = np.flatnonzero(partners < 0)
        free = np.setdiff1d(np.arange(len(after)), partners)
        left, right = _joined(keys[alone], others[free])
        partners[alone[left]] = free[right]
    return partners


_NONE: Integers = np.empty(0, dtype=np.int64)


def _hashes(values: Iterator[int], count: int) -> Integers:
    return np.fromiter(values, dtype=np.int64, count=count)


def _joined(left: Integers, right: Integers) -> tuple[Integers, Integers]:
    """Where the nth of a key in `left` and the nth of that key in `right` are."""
    _, numbered = np.unique(np.concatenate([left, right]), return_inverse=True)
    mine, theirs = numbered[: len(left)], numbered[len(left) :]
    often = max(len(left), len(right), 1)
    _, at, there = np.intersect1d(
        mine * often + _occurrences(mine), theirs * often + _occurrences(theirs), True, return_indices=True
    )
    return at, there


def _occurrences(keys: Integers) -> Integers:
    """0 for the first of its key, 1 for the second, and so on."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
    lengths = np.diff(firsts, append=len(keys))
    counted = np.empty(len(keys), dtype=np.int64)
    counted[order] = np.arange(len(keys)) - np.repeat(firsts, lengths)
    return counted
