"""What of some runs goes into a data set: which prompts, and of each image the answers of which run.

An image is known by its `uri`; one that a run lists under several names is as many images, each known by `uri` and
name. Of one that several runs hold, the last of them counts that answered all selected prompts, in the order in which
the runs were named; if none did, the last that holds it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pixscribe.errors import ConfigError, OutputError
from pixscribe.exports.base import LABEL_KINDS, UNLABELLED
from pixscribe.exports.names import number_of
from pixscribe.results import ImageRows, RunResults
from pixscribe.types import ImageStatus, Kind

STATUSES: tuple[ImageStatus, ...] = ("ok", "partial", "failed")
LEFT_OUT = {"partial": "without an answer to each prompt", "failed": "without any answer", "ok": "answered in full"}
"""Why an image is left out, by a status that is not wanted."""
NO_SIZE = "of unknown size, for they could not be read"

_COLUMNS = {
    "images": ["uri", "file_name", "width"],
    "responses": ["prompt", "status", "annotation_count"],
    "annotations": ["label"],
}

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images of which parts are taken, and what is known of them beforehand. Iterating over it reads them, with
    the rows of the selected prompts.
    """

    prompts: Mapping[str, Kind]
    chosen: Mapping[RunResults, Mapping[str, Flags]]
    """By run and part, one flag for each image."""
    labels: frozenset[str]
    """Of the answers of all images whose status is wanted."""
    left_out: Counter[str]

    def count(self) -> int:
        """How many images are taken."""
        return sum(int(flags.sum()) for parts in self.chosen.values() for flags in parts.values())

    def __iter__(self) -> Iterator[tuple[RunResults, ImageRows]]:
        for run, parts in self.chosen.items():
            taken = {part: flags for part, flags in parts.items() if flags.any()}
            for flags, images in zip(taken.values(), run.read_images(taken, frozenset(self.prompts)), strict=True):
                yield from ((run, image) for image, flag in zip(images, flags, strict=True) if flag)


def choose_prompts(
    runs: Sequence[RunResults],
    names: Sequence[str],
    kinds: AbstractSet[Kind],
    format_name: str,
    tell: Callable[[str], None],
) -> dict[str, Kind]:
    """The prompts called `names`; without names, those that all runs have asked and that the format can hold.

    Raises `ConfigError` for a prompt that one of the runs does not have, that the format cannot hold, and if none is
    left.
    """
    if names:
        return {name: _kind_of(runs, name, kinds, format_name) for name in names}
    fitting = {name: kind for run in runs for name, kind in run.kinds.items() if kind in kinds}
    common = {name: kind for name, kind in fitting.items() if all(run.kinds.get(name) in kinds for run in runs)}
    if not common:
        asked = "; ".join(f"{run.run_id} has {_list_prompts(run)}" for run in runs)
        raise ConfigError(
            f"--format {format_name} holds prompts of kind {_any_of(kinds)}, and none is in {_each(runs)}: {asked}"
        )
    if others := [name for name in fitting if name not in common]:
        tell(f"not exported, for not all of the runs have asked it: {', '.join(others)}")
    return common


def choose_images(
    runs: Sequence[RunResults], prompts: Mapping[str, Kind], statuses: AbstractSet[ImageStatus]
) -> Selection:
    """Look once at the key columns of all parts: some 60 bytes of memory for each image. Raises `OutputError`."""
    looker = _Looker(prompts, statuses)
    places = [(run, part) for run in runs for part in run.parts]
    looks_of_runs = [list(looker.look_at(run)) for run in runs]
    looks = _with_names(looks_of_runs)
    keys, states, has_size = _joined(looks)
    counts = _last_answered(keys, states == 0)
    is_wanted = np.isin(states, [STATUSES.index(status) for status in statuses])
    is_taken = counts & is_wanted & has_size
    chosen: dict[RunResults, dict[str, Flags]] = {run: {} for run in runs}
    ends = np.cumsum([len(look.keys) for look in looks])
    for (run, part), flags in zip(places, np.split(is_taken, ends[:-1]) if places else (), strict=True):
        chosen[run][part] = flags
    left_out = _reasons(states[counts], is_wanted[counts], has_size[counts])
    return Selection(prompts, chosen, frozenset(looker.labels), left_out)


@dataclass(frozen=True, slots=True)
class _Look:
    """What is remembered of the images of one part: numbers for each URI, and for URI and name together, and the place
    of its status in STATUSES.
    """

    keys: Numbers
    named_keys: Numbers
    states: npt.NDArray[np.uint8]
    has_size: Flags


class _Looker:
    """Reads the key columns of parts with a selection of prompts in mind."""

    def __init__(self, prompts: Mapping[str, Kind], statuses: AbstractSet[ImageStatus]) -> None:
        self._prompts = pa.array(list(prompts), pa.string())
        self._with_labels = pa.array([name for name, kind in prompts.items() if kind in LABEL_KINDS], pa.string())
        self._wanted = [STATUSES.index(status) for status in statuses]
        self.labels = set[str]()
        """Of all good answers to prompts with labels, of images whose status is wanted."""

    def look_at(self, run: RunResults) -> Iterator[_Look]:
        """One part of a run after the other."""
        for part, tables in zip(run.parts, run.read_parts(_COLUMNS), strict=True):
            yield self._look_at(tables, f"{run.storage.uri}, run {run.run_id}, {part}")

    def _look_at(self, tables: Sequence[pa.Table], place: str) -> _Look:
        images, responses, annotations = tables
        object_counts = responses["annotation_count"].to_numpy()
        if responses.num_rows % max(images.num_rows, 1) or object_counts.sum() != annotations.num_rows:
            raise OutputError(f"{place}: the tables are not about the same images")
        failed = pc.equal(responses["status"], "failed").to_numpy()
        states = self._states(failed, responses, images.num_rows)
        has_labels = pc.is_in(responses["prompt"], value_set=self._with_labels).to_numpy() & ~failed
        is_wanted = np.repeat(np.isin(states, self._wanted), len(failed) // max(len(states), 1))
        taken = np.repeat(has_labels & is_wanted, object_counts)
        self._remember(annotations["label"].filter(pa.array(taken, pa.bool_())))
        uris, names = images["uri"].to_pylist(), images["file_name"].to_pylist()
        named = _numbers(f"{uri}\0{name}" for uri, name in zip(uris, names, strict=True))
        return _Look(_numbers(uris), named, states, pc.is_valid(images["width"]).to_numpy())

    def _states(self, failed: Flags, responses: pa.Table, image_count: int) -> npt.NDArray[np.uint8]:
        is_selected = pc.is_in(responses["prompt"], value_set=self._prompts).to_numpy()
        # each image has the same prompts, one after the other
        prompt_count = len(failed) // max(image_count, 1)
        failed_count = (failed & is_selected).reshape(image_count, prompt_count).sum(axis=1)
        return np.where(failed_count == 0, 0, np.where(failed_count < len(self._prompts), 1, 2)).astype(np.uint8)

    def _remember(self, labels: pa.ChunkedArray) -> None:
        self.labels.update(UNLABELLED if label is None else label for label in pc.unique(labels).to_pylist())


def _with_names(looks_of_runs: Sequence[Sequence[_Look]]) -> list[_Look]:
    """All looks, the keys of those URIs replaced that any of the runs has under several names."""
    several = [_repeated(np.concatenate([look.keys for look in looks])) for looks in looks_of_runs if looks]
    repeated = np.concatenate(several or [_numbers(())])
    return [
        replace(look, keys=np.where(np.isin(look.keys, repeated), look.named_keys, look.keys))
        for looks in looks_of_runs
        for look in looks
    ]


def _repeated(keys: Numbers) -> Numbers:
    found, counts = np.unique(keys, return_counts=True)
    return found[counts > 1]


def _numbers(texts: Iterable[str]) -> Numbers:
    return np.fromiter(map(number_of, texts), np.uint64)


def _last_answered(keys: Numbers, is_answered: Flags) -> Flags:
    """Of the rows with one key the last that is answered, or else the last."""
    order = np.lexsort((is_answered, keys))  # which keeps the order of those that are equal
    is_last = np.ones(len(keys), np.bool_)
    is_last[:-1] = keys[order][1:] != keys[order][:-1]
    counts = np.zeros(len(keys), np.bool_)
    counts[order[is_last]] = True
    return counts


def _reasons(states: npt.NDArray[np.uint8], is_wanted: Flags, has_size: Flags) -> Counter[str]:
    """How many images are left out, by why."""
    reasons = {
        LEFT_OUT[status]: int(np.count_nonzero(~is_wanted & (states == number)))
        for number, status in enumerate(STATUSES)
    }
    return Counter({**reasons, NO_SIZE: int(np.count_nonzero(is_wanted & ~has_size))}) + Counter()


def _joined(looks: Sequence[_Look]) -> tuple[Numbers, npt.NDArray[np.uint8], Flags]:
    if not looks:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.bool_)
    return (
        np.concatenate([look.keys for look in looks]),
        np.concatenate([look.states for look in looks]),
        np.concatenate([look.has_size for look in looks]),
    )


def _kind_of(runs: Sequence[RunResults], name: str, kinds: AbstractSet[Kind], format_name: str) -> Kind:
    for run in runs:
        kind = run.kinds.get(name)
        if kind is None:
            raise ConfigError(f"--prompt {name}: the run {run.run_id} has no such prompt; it has {_list_prompts(run)}")
        if kind not in kinds:
            raise ConfigError(
                f"--prompt {name}: is a {kind} prompt in {run.run_id}, and --format {format_name} holds "
                f"those of kind {_any_of(kinds)}"
            )
    return runs[-1].kinds[name]


def _list_prompts(run: RunResults) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in run.kinds.items())


def _any_of(kinds: AbstractSet[Kind]) -> str:
    return " or ".join(sorted(kinds))


def _each(runs: Sequence[RunResults]) -> str:
    return "the run" if len(runs) == 1 else "each of the runs"
