"""What the images of a data set are called: as in the tables, as far as any file system and any reader can bear it."""

import re
from collections.abc import Set as AbstractSet
from hashlib import blake2b, sha256

MAX_PART_BYTES = 200
"""File systems take 255; suffixes and marks are put behind a name."""
MAX_NAME_BYTES = 1000
"""A path may have 4,096, and it begins with the folder of the data set."""
PICTURE_SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",)}
"""By which readers know a picture, by Pillow's name for its format; the first is put behind a name that has none."""

# a line break would end the name in lists of names, a backslash is a slash on Windows
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff\\]")
# no reader that searches a folder finds these
_HIDDEN = re.compile(r"(?<![^/])\.")
_DRIVE = re.compile(r"^([A-Za-z]):")
# readers pass over hidden files, and FiftyOne's fails for want of them
_EDGES = re.compile(r"^[\s.]|\s$")
# a folder `a.txt` beside the labels of `a.jpg` would take their place, as would one called `metadata.parquet`
_LOOKS_LIKE_A_FILE = re.compile(r"\.(?:jpe?g|png|webp|txt|xml|jsonl?|csv|parquet)$", re.IGNORECASE)


def clean_name(file_name: str) -> str:
    """A relative path with `/` that leads nowhere else; the name itself, if it is one.

    `file_name` may come from a list that anybody wrote: `../../x`, `/etc/x`, `C:\\x`, or nothing at all.
    """
    parts = [part for part in _DRIVE.sub(r"\1_", file_name).split("/") if part not in ("", ".", "..")]
    folders = [_LOOKS_LIKE_A_FILE.sub(r"\g<0>_", _clean_part(part)) for part in parts[:-1]]
    name = "/".join((*folders, _clean_part(parts[-1] if parts else "image")))
    return name if len(name.encode()) <= MAX_NAME_BYTES else f"{_mark(name)}/{name.rpartition('/')[2]}"


def split_suffix(name: str) -> tuple[str, str]:
    """(`a/b`, `.jpg`) of `a/b.jpg`; without a suffix the second is empty. A leading dot begins none."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    return (folder + slash + stem, dot + suffix) if stem.strip(".") else (name, "")


class Names:
    """Gives each image of a data set a name that no other has; remembers 60 bits of each.

    With `by_stem`, names differ without their suffix too: `a.jpg` and `a.png` would share a label file `a.txt`, so that
    the second becomes `a.png.png`, whose labels are in `a.png.txt`. A folder in a name is called none of `reserved`.
    """

    def __init__(self, *, by_stem: bool, reserved: AbstractSet[str] = frozenset()) -> None:
        self._by_stem = by_stem
        self._reserved = reserved
        self._taken: set[int] = set()

    def take(self, file_name: str, uri: str, picture_format: str | None = None) -> str:
        """The name of one image; of a picture of `picture_format`, with a suffix that says so.

        What differs in nothing but its place is told apart by a mark from its URI, the same in each export in which
        the plain name is taken.
        """
        name = self._not_reserved(clean_name(file_name))
        if self._by_stem or picture_format:
            name = _HIDDEN.sub("_.", name)
        suffixes = PICTURE_SUFFIXES[picture_format] if picture_format else None
        if suffixes and split_suffix(name)[1].lower() not in suffixes:
            name += suffixes[0]
        if self._claim(name):
            return name
        stem, suffix = split_suffix(name)
        if self._by_stem and suffix and self._claim(name + suffix):
            return name + suffix
        number = 0
        while not self._claim(other := f"{stem}-{_mark(uri, number)}{suffix}"):
            number += 1
        return other

    def _not_reserved(self, name: str) -> str:
        *folders, last = name.split("/")
        return "/".join((*(f"{folder}_" if folder in self._reserved else folder for folder in folders), last))

    def _claim(self, name: str) -> bool:
        key = number_of(split_suffix(name)[0] if self._by_stem else name)
        is_free = key not in self._taken
        self._taken.add(key)
        return is_free


def number_of(text: str) -> int:
    """60 bits that stand for a text: among ten million of them, two are the same once in 20,000 data sets.

    Python needs a third less memory for them than for 64.
    """
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 4


def _clean_part(part: str) -> str:
    clean = _EDGES.sub("_", _FORBIDDEN.sub("_", part))
    if len(clean.encode()) <= MAX_PART_BYTES:
        return clean
    stem, suffix = split_suffix(clean)
    suffix = suffix if len(suffix.encode()) <= 16 else ""
    short = stem.encode()[: MAX_PART_BYTES - 32].decode(errors="ignore")
    return f"{short}-{_mark(part)}{suffix}"


def _mark(text: str, number: int = 0) -> str:
    return sha256(f"{text}\0{number}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
