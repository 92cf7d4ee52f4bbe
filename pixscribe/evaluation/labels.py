"""What the answers call things, in the words of the truth.

Case and space at both ends do not count, nor how an accent is composed: `Car `, `car` and `CAR` are one label. Words
inside a label do: `traffic  light` is not `traffic light`.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from pixscribe.config import read_yaml, shortened
from pixscribe.errors import ConfigError
from pixscribe.evaluation.truth import TruthCategory


class Vocabulary:
    """The labels of a truth, and which of them an answer means.

    Categories whose names differ in case or outer space only are one label, as the first of them spells it.
    """

    def __init__(self, categories: Sequence[TruthCategory]) -> None:
        self._position: dict[str, int] = {}
        self._of_category: dict[int, int] = {}
        self._memory: dict[str, int | None] = {}
        names: list[str] = []
        merged: list[str] = []
        for category in categories:
            position = self._position.setdefault(normalized(category.name), len(names))
            if position == len(names):
                names.append(category.name.strip())
            else:
                merged.append(category.name.strip())
            self._of_category[category.id] = position
        self.names = tuple(names)
        self.merged = tuple(merged)
        """Names that were found to be another's."""

    def position_of(self, category_id: int) -> int:
        """The place in `names` of a category."""
        return self._of_category[category_id]

    def find(self, label: str) -> int | None:
        """The place in `names` of what an answer says; None if the truth has no such label."""
        if label not in self._memory:
            self._memory[label] = self._position.get(normalized(label))
        return self._memory[label]

    def add_synonyms(self, synonyms: Mapping[str, Sequence[str]], origin: str) -> None:
        """Let words of the answers mean labels of the truth. Raises `ConfigError`, which begins with `origin`."""
        taken = dict(self._position)
        for name, words in synonyms.items():
            position = self._position.get(normalized(name))
            if position is None or position >= len(self.names):
                raise ConfigError(f"{origin}: {shortened(name)}: is no label of the truth{self._allowed()}")
            for word in words:
                other = taken.setdefault(normalized(word), position)
                if other != position:
                    whose = f"means {shortened(self.names[other])} already"
                    raise ConfigError(
                        f"{origin}: {shortened(name)}: {shortened(word)}: {whose}; a word has one meaning"
                    )
        self._position = taken
        self._memory.clear()

    def _allowed(self) -> str:
        shown = ", ".join(self.names[:12])
        return f"; those are {shown}{', …' if len(self.names) > 12 else ''}"


def normalized(label: str) -> str:
    """What two spellings of one label have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold()).strip()


def read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Read YAML such as `car: [auto, sedan]`. Raises `ConfigError`."""
    values = read_yaml(path, "labels of the truth and their synonyms, such as car: [auto, sedan]")
    return {_text(name, str(path)): _words(words, f"{path}: {shortened(name)}") for name, words in values.items()}


def _words(words: object, place: str) -> tuple[str, ...]:
    listed = words if isinstance(words, list) else [words]
    return tuple(_text(word, place) for word in listed)


def _text(word: object, place: str) -> str:
    if not isinstance(word, str) or not word.strip():
        raise ConfigError(f"{place}: {shortened(word)}: should be text, in quotes if YAML takes it for something else")
    return word
