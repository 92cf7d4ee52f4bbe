"""What a comparison of two runs comes to, in numbers and bounded lists."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from pixscribe.diff.columns import Status
from pixscribe.diff.configs import ConfigChange
from pixscribe.diff.objects import State
from pixscribe.diff.pairing import Place
from pixscribe.progress import Totals
from pixscribe.types import Kind, Size

MAX_LISTED = 1000
"""Images that are named of those that changed, were added and were removed, each."""
MAX_LABELS = 10_000
"""Labels of one prompt, and pairs of them, that are counted by name; the rest together: labels may be as many as
objects."""

Label = str | None


def percent(share: float) -> str:
    """`12.5 %`; what is not quite nothing or not quite all is not rounded to it."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.1f} %"


@dataclass(slots=True)
class Counts:
    """Objects by what became of them."""

    same: int = 0
    moved: int = 0
    relabelled: int = 0
    new: int = 0
    gone: int = 0

    @property
    def before(self) -> int:
        return self.same + self.moved + self.relabelled + self.gone

    @property
    def after(self) -> int:
        return self.same + self.moved + self.relabelled + self.new

    @property
    def changed(self) -> int:
        return self.moved + self.relabelled + self.new + self.gone

    @property
    def changed_share(self) -> float:
        """Of all objects there are in either run, a pair counted once; 0 if there are none."""
        return self.changed / max(1, self.same + self.changed)

    def add(self, state: State, objects: int = 1) -> None:
        setattr(self, state, getattr(self, state) + objects)

    @classmethod
    def sum(cls, parts: Iterable["Counts"]) -> "Counts":
        return cls(*(sum(column) for column in zip(*(astuple(part) for part in parts), strict=True)))

    def to_json(self) -> dict[str, Any]:
        sides = {"before": self.before, "after": self.after}
        return {**sides, **asdict(self), "changed_share": self.changed_share}


@dataclass(frozen=True, slots=True)
class ChangedShare:
    """How much changed: of `total` objects of either run, a pair counted once, and lost answers that had none."""

    changed: int
    total: int
    empty_answers_lost: int

    @classmethod
    def of(cls, counts: Counts, empty_answers_lost: int) -> "ChangedShare":
        changed = counts.changed + empty_answers_lost
        return cls(changed, counts.same + changed, empty_answers_lost)

    def __float__(self) -> float:
        return self.changed / max(1, self.total)


@dataclass(slots=True)
class LabelCounts:
    """Objects of one label: of those with another label in the other run it is `relabelled_from` or `relabelled_to`."""

    same: int = 0
    moved: int = 0
    relabelled_from: int = 0
    relabelled_to: int = 0
    new: int = 0
    gone: int = 0

    @property
    def before(self) -> int:
        return self.same + self.moved + self.relabelled_from + self.gone

    @property
    def after(self) -> int:
        return self.same + self.moved + self.relabelled_to + self.new

    @property
    def changed(self) -> int:
        return self.moved + self.relabelled_from + self.relabelled_to + self.new + self.gone

    @property
    def changed_share(self) -> float:
        """Of all objects that have the label in either run; 0 if there are none."""
        return self.changed / max(1, self.same + self.changed)

    def to_json(self) -> dict[str, Any]:
        sides = {"before": self.before, "after": self.after}
        return {**sides, **asdict(self), "changed_share": self.changed_share}


@dataclass(slots=True)
class PromptDiff:
    """What changed in the answers to one prompt, over the images of both runs."""

    prompt: str
    kind: Kind
    """In the second run."""
    is_text: bool
    """Whether an answer of either run is one text, so that labels are no names of things."""
    answers_lost: int = 0
    """Failed where there was an answer before: its objects are gone."""
    empty_answers_lost: int = 0
    """Those of them that had no objects. Each counts as one change, or else their loss would be none."""
    answers_gained: int = 0
    counts: Counts = field(default_factory=Counts)
    labels: dict[Label, LabelCounts] = field(default_factory=dict)
    """Empty where labels are sentences."""
    other_labels: LabelCounts = field(default_factory=LabelCounts)
    """Of what is beyond `MAX_LABELS`."""
    relabellings: Counter[tuple[Label, Label]] = field(default_factory=Counter)

    @property
    def share(self) -> "ChangedShare":
        return ChangedShare.of(self.counts, self.empty_answers_lost)

    def add(self, state: State, before: Label, after: Label, objects: int = 1) -> None:
        """Count objects; of those that are in one run only, the label of the other is not looked at."""
        self.counts.add(state, objects)
        if self.is_text:
            return
        if state == "relabelled":
            self._line(before).relabelled_from += objects
            self._line(after).relabelled_to += objects
            self._count_relabelling(before, after, objects)
        else:
            line = self._line(after if state == "new" else before)
            setattr(line, state, getattr(line, state) + objects)

    def labels_by_change(self) -> list[tuple[Label, LabelCounts]]:
        """The most changed first, then the most frequent ones."""
        return sorted(self.labels.items(), key=lambda line: (-line[1].changed, -line[1].before, str(line[0])))

    def _line(self, label: Label) -> LabelCounts:
        if label not in self.labels and len(self.labels) >= MAX_LABELS:
            return self.other_labels
        return self.labels.setdefault(label, LabelCounts())

    def _count_relabelling(self, before: Label, after: Label, objects: int) -> None:
        if (before, after) in self.relabellings or len(self.relabellings) < MAX_LABELS:
            self.relabellings[before, after] += objects


@dataclass(frozen=True, slots=True)
class ImageChange:
    """One image of both runs in which something is not the same."""

    file_name: str
    places: tuple[Place, Place]
    """In the first run and in the second."""
    counts: Counts
    status: tuple[Status, Status]
    size: tuple[Size | None, Size | None]
    is_content_changed: bool

    @property
    def is_status_changed(self) -> bool:
        return self.status[0] != self.status[1]

    @property
    def is_size_changed(self) -> bool:
        return None not in self.size and self.size[0] != self.size[1]

    @property
    def is_empty(self) -> bool:
        return not (self.counts.changed or self.is_status_changed or self.is_size_changed or self.is_content_changed)

    def words(self) -> str:
        """Such as `2 new, 1 gone; ok → partial (blocked)`."""
        objects = ((getattr(self.counts, state), state) for state in ("moved", "relabelled", "new", "gone"))
        parts = [", ".join(f"{count} {state}" for count, state in objects if count)]
        if self.is_status_changed:
            parts.append(f"{self.status[0]} → {self.status[1]}")
        if self.is_content_changed:
            parts.append("another file")
        if self.is_size_changed:
            parts.append(" → ".join("{} x {} px".format(*size) for size in self.size if size))
        return "; ".join(filter(None, parts))

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"file_name": self.file_name, "objects": self.counts.to_json()}
        if self.is_status_changed:
            values["status"] = dict(zip(("before", "after"), (status._asdict() for status in self.status), strict=True))
        if self.is_size_changed:
            values["size"] = dict(zip(("before", "after"), self.size, strict=True))
        if self.is_content_changed:
            values["content_changed"] = True
        return values


@dataclass(slots=True)
class LoneImages:
    """Images of one run only, and what was found in them: neither new nor gone, for a data set may grow."""

    images: int = 0
    objects: int = 0
    names: list[str] = field(default_factory=list)
    """The first `MAX_LISTED`."""

    def add(self, names: list[str], objects: int) -> None:
        self.images += len(names)
        self.objects += objects
        self.names += names[: MAX_LISTED - len(self.names)]


@dataclass(slots=True)
class ImageCounts:
    """Images of both runs, and of these those with a change of each kind."""

    compared: int = 0
    changed: int = 0
    """In anything, the objects included."""
    objects_changed: int = 0
    status_changed: int = 0
    content_changed: int = 0
    """Another file under the same name."""
    size_changed: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """One of the runs."""

    name: str
    """OUTPUT@RUN_ID."""
    is_complete: bool
    images: int
    totals: Totals
    """Of the whole run, whatever is compared of it."""


@dataclass(slots=True)
class RunDiff:
    """What changed from `before` to `after`."""

    before: Side
    after: Side
    prompts_before: tuple[str, ...]
    """That only the first run asked: nothing of them is compared."""
    prompts_after: tuple[str, ...]
    config: tuple[ConfigChange, ...]
    same_iou: float
    prompts: dict[str, PromptDiff]
    images: ImageCounts = field(default_factory=ImageCounts)
    removed: LoneImages = field(default_factory=LoneImages)
    added: LoneImages = field(default_factory=LoneImages)
    statuses: Counter[tuple[Status, Status]] = field(default_factory=Counter)
    """How often an image went from one status to another."""
    changed: list[ImageChange] = field(default_factory=list)
    """The first `MAX_LISTED`, in the order of the runs."""

    @property
    def counts(self) -> Counts:
        """Over all prompts."""
        return Counts.sum(prompt.counts for prompt in self.prompts.values())

    @property
    def share(self) -> ChangedShare:
        """Over all prompts: what `--fail-above` looks at."""
        lost = sum(prompt.empty_answers_lost for prompt in self.prompts.values())
        return ChangedShare.of(self.counts, lost)

    @property
    def not_compared(self) -> str:
        """Why no answer was compared with another one, or nothing."""
        if not self.prompts:
            return "the runs have no prompt in common"
        return "" if self.images.compared else "the runs have no image in common"

    @property
    def is_empty(self) -> bool:
        """Whether both runs have the same images, and the same in them. Their configs may differ."""
        return not (self.images.changed or self.removed.images or self.added.images)

    def add(self, change: ImageChange) -> None:
        """Count a changed image."""
        self.images.changed += 1
        self.images.objects_changed += change.counts.changed > 0
        self.images.status_changed += change.is_status_changed
        self.images.content_changed += change.is_content_changed
        self.images.size_changed += change.is_size_changed
        if change.is_status_changed:
            self.statuses[change.status] += 1
        if len(self.changed) < MAX_LISTED:
            self.changed.append(change)

    def to_json(self) -> dict[str, Any]:
        """What `pixscribe diff --json` prints."""
        return {
            "before": _side_to_json(self.before),
            "after": _side_to_json(self.after),
            "is_empty": self.is_empty,
            "same_iou": self.same_iou,
            "config": [asdict(change) for change in self.config],
            "prompts_only_before": self.prompts_before,
            "prompts_only_after": self.prompts_after,
            "images": {
                **asdict(self.images),
                "added": self.added.images,
                "added_objects": self.added.objects,
                "removed": self.removed.images,
                "removed_objects": self.removed.objects,
                "statuses": [
                    {"before": before._asdict(), "after": after._asdict(), "images": images}
                    for (before, after), images in self.statuses.most_common()
                ],
            },
            "objects": self.counts.to_json(),
            "changed_share": float(self.share),
            "prompts": [_prompt_to_json(prompt) for prompt in self.prompts.values()],
            "changed_images": [change.to_json() for change in self.changed],
            "added_images": self.added.names,
            "removed_images": self.removed.names,
            "images_are_cut": self._is_cut,
        }

    @property
    def _is_cut(self) -> bool:
        lists = ((self.changed, self.images.changed), (self.added.names, self.added.images))
        return any(len(listed) < images for listed, images in (*lists, (self.removed.names, self.removed.images)))


def _side_to_json(side: Side) -> dict[str, Any]:
    status = "complete" if side.is_complete else "unfinished"
    return {"run": side.name, "status": status, "images": side.images, "totals": asdict(side.totals)}


def _prompt_to_json(prompt: PromptDiff) -> dict[str, Any]:
    lines = [{"label": label, **counts.to_json()} for label, counts in prompt.labels_by_change()]
    values = {
        "prompt": prompt.prompt,
        "kind": prompt.kind,
        "answers_lost": prompt.answers_lost,
        "empty_answers_lost": prompt.empty_answers_lost,
        "answers_gained": prompt.answers_gained,
        "objects": prompt.counts.to_json(),
        "labels": lines,
        "relabellings": [
            {"before": before, "after": after, "objects": objects}
            for (before, after), objects in prompt.relabellings.most_common(MAX_LISTED)
        ],
    }
    if prompt.other_labels != LabelCounts():
        values["other_labels"] = prompt.other_labels.to_json()
    return values
