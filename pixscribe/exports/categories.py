"""The ids of labels, which stay what they are from one export of an output to the next.

`<output>/categories.json` is one object, label -> id, from 1 on without gaps. Labels are appended to it; none is ever
removed or given another id.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

import orjson

from pixscribe.errors import OutputError
from pixscribe.storage import SWAP_TRIES, Storage

KEY = "categories.json"


def number_labels(storage: Storage, labels: Iterable[str], tell: Callable[[str], None]) -> dict[str, int]:
    """The mapping of an output with `labels` in it, new ones appended in their order.

    Where it cannot be written, `tell` gets a sentence, and the ids hold for this export alone. Raises `OutputError` for
    a mapping that is damaged: other ids than before would make other classes of the same labels.
    """
    wanted = tuple(labels)
    for _ in range(SWAP_TRIES):
        old = _read(storage)
        known = {} if old is None else _parse(old, storage.uri_of(KEY))
        numbered = known | {label: number for number, label in enumerate(_new(wanted, known), len(known) + 1)}
        if len(numbered) == len(known):
            return known
        try:
            if storage.swap(KEY, old, orjson.dumps(numbered, option=orjson.OPT_INDENT_2)):
                return numbered
        except OutputError as error:
            tell(f"the ids of new labels are kept for this export only: {error}")
            return numbered
    raise OutputError(f"{storage.uri_of(KEY)}: is changed by others again and again")


def _read(storage: Storage) -> bytes | None:
    with suppress(FileNotFoundError):
        return storage.read(KEY)
    return None


def _new(labels: Iterable[str], known: dict[str, int]) -> list[str]:
    return [label for label in dict.fromkeys(labels) if label not in known]


def _parse(data: bytes, place: str) -> dict[str, int]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise OutputError(f"{place}: is no JSON ({error}); mend it, or delete it to number all labels anew") from error
    ids = list(found.values()) if isinstance(found, dict) else []
    are_numbers = isinstance(found, dict) and all(type(number) is int for number in ids)
    if not are_numbers or sorted(ids) != list(range(1, len(ids) + 1)):
        raise OutputError(
            f"{place}: should be one object that gives each label an id, from 1 on without gaps or repetitions; "
            "mend it, or delete it to number all labels anew"
        )
    return dict(sorted(found.items(), key=lambda item: item[1]))
