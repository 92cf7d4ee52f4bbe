"""What the listing of a source says of its images, none of which is opened."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pixscribe.config import IMAGE_GLOBS
from pixscribe.spread import Spread
from pixscribe.types import ImageRef

KEPT_IMAGES = 2000
"""Of so many at least the references are kept, for whoever looks at some of them."""
TYPES = {glob.removeprefix("*."): glob.removeprefix("*.") for glob in IMAGE_GLOBS} | {
    **dict.fromkeys(("jpg", "jpe", "jfif", "mpo"), "jpeg"),
    **{"apng": "png", "heif": "heic", "hif": "heic", "tif": "tiff"},
}
"""What files of one kind end in, and its name."""


@dataclass(slots=True)
class TypeCount:
    """Images of one type, told by what their names end in."""

    images: int = 0
    size_bytes: int = 0
    """Of those whose size the listing tells."""
    largest_bytes: int = 0


@dataclass(slots=True)
class Census:
    """Counts, and the sizes of all files, 8 bytes each."""

    images: int = 0
    unreadable: int = 0
    """Those that the listing found to be no image: dangling links, pipes, folders without permission, empty lines."""
    unsized: int = 0
    """Those that could be read as far as is known, and whose size is not known before."""
    by_type: dict[str, TypeCount] = field(default_factory=dict)
    some: Spread[ImageRef] = field(default_factory=lambda: Spread(KEPT_IMAGES, seed=1))
    """Of those that may be readable."""
    _sizes: "array[int]" = field(default_factory=lambda: array("q"))

    @property
    def readable(self) -> int:
        """Images that may be readable."""
        return self.images - self.unreadable

    @property
    def size_bytes(self) -> int:
        """Of all files whose size is known."""
        return sum(each.size_bytes for each in self.by_type.values())

    def count(self, ref: ImageRef) -> None:
        """One image more."""
        self.images += 1
        if ref.error is not None:
            self.unreadable += 1
            return
        self.some.add(ref)
        counted = self.by_type.setdefault(_type_of(ref.file_name), TypeCount())
        counted.images += 1
        if ref.size_bytes is None:
            self.unsized += 1
        else:
            self._sizes.append(ref.size_bytes)
            counted.size_bytes += ref.size_bytes
            counted.largest_bytes = max(counted.largest_bytes, ref.size_bytes)

    def same_size(self) -> int:
        """How many images have a size that another one before them has: no more than these can be duplicates.

        Those whose size is not known are not among them.
        """
        sizes = np.frombuffer(self._sizes, np.int64)
        return len(sizes) - len(np.unique(sizes))


def take_census(refs: Iterable[ImageRef]) -> Census:
    """Count the images of a source. Raises what the scan does."""
    census = Census()
    for ref in refs:
        census.count(ref)
    census.by_type = dict(sorted(census.by_type.items(), key=lambda item: (-item[1].images, item[0])))
    return census


def _type_of(file_name: str) -> str:
    return TYPES.get(file_name.rpartition(".")[2].lower(), "other")
