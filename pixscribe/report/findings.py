"""What all tables of a run say together, read part by part, so that a run of any size fits into memory."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pixscribe.errors import OutputError
from pixscribe.report.pace import Pace
from pixscribe.report.sampling import PartSampler, Sampler
from pixscribe.report.wording import TEXT_KINDS, short_label
from pixscribe.results import RunResults

COLUMNS: dict[str, Sequence[str]] = {
    "images": ("file_name", "status", "error_code"),
    "responses": (
        *("prompt", "kind", "status", "error_code", "annotation_count", "attempts", "reused", "latency_ms", "asked_at"),
        *("input_tokens", "output_tokens", "thought_tokens", "cost_usd"),
    ),
    "annotations": ("prompt", "label", "width", "height", "xmin", "ymin", "xmax", "ymax", "flags"),
}
SIZE_BINS = 20
"""Box sizes are counted in steps of a twentieth."""
MAX_LABELS = 20_000
"""Labels of a prompt that are counted one by one. Beyond them those that were rare so far are counted as one."""
SHARED = 512
"""Objects of one answer are counted one by one up to here."""

Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class LabelCounts:
    """How often each label was answered. `rare` counts those that were not remembered: too many, or texts."""

    counts: Counter[str] = field(default_factory=Counter)
    rare: int = 0

    def add(self, counts: dict[str, int]) -> None:
        """More of some labels."""
        self.counts.update(counts)
        if len(self.counts) > 2 * MAX_LABELS:
            kept = Counter(dict(self.counts.most_common(MAX_LABELS)))
            self.rare += self.counts.total() - kept.total()
            self.counts = kept


@dataclass(slots=True)
class PromptFindings:
    """What came of one prompt."""

    kind: str
    statuses: Counter[str] = field(default_factory=Counter)
    """Responses by `ok`, `repaired`, `failed`."""
    labels: LabelCounts = field(default_factory=LabelCounts)
    unlabelled: int = 0
    per_image: Counter[int] = field(default_factory=Counter)
    """Answered images by the number of their objects."""
    sizes: Integers = field(default_factory=lambda: np.zeros(SIZE_BINS, np.int64))
    """Boxes by the square root of their share of the image: 0 to 1 in `SIZE_BINS` steps."""

    @property
    def objects(self) -> int:
        return self.labels.counts.total() + self.labels.rare + self.unlabelled

    @property
    def is_text(self) -> bool:
        return self.kind in TEXT_KINDS


@dataclass(slots=True)
class Findings:
    """Everything that the page of a run says in numbers."""

    images: Counter[str] = field(default_factory=Counter)
    """By `ok`, `partial`, `failed`."""
    image_errors: Counter[str] = field(default_factory=Counter)
    """Failed images by `error_code`, that of their first prompt that failed."""
    partial_errors: Counter[str] = field(default_factory=Counter)
    images_by_error: Counter[str] = field(default_factory=Counter)
    """Images with a failed response of that `error_code`; one image may have several."""
    errors: dict[str, Counter[str]] = field(default_factory=dict)
    """Failed responses by `error_code`, and then by prompt."""
    flags: Counter[str] = field(default_factory=Counter)
    """Objects by flag."""
    prompts: dict[str, PromptFindings] = field(default_factory=dict)
    responses: Counter[str] = field(default_factory=Counter)
    """By `ok`, `repaired`, `failed`."""
    reused: int = 0
    requests: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    """`input_tokens`, `output_tokens`, `thought_tokens`."""
    cost_usd: float = 0.0
    priced: int = 0
    """Responses whose cost is known, which may be 0."""
    pace: Pace = field(default_factory=Pace)

    @property
    def objects(self) -> int:
        return sum(prompt.objects for prompt in self.prompts.values())

    def label_counts(self) -> Counter[str]:
        """Over all prompts."""
        total = Counter[str]()
        for prompt in self.prompts.values():
            total.update(prompt.labels.counts)
        return total


def gather(results: RunResults, sampler: Sampler, is_over: Callable[[], bool] = lambda: False) -> Findings:
    """Read all parts, and let `sampler` look at them too. Raises `OutputError`, also when it `is_over`."""
    findings = Findings()
    for number, tables in enumerate(results.read_parts(COLUMNS)):
        check_over(is_over)
        part = _Part(*tables)
        part.check(f"{results.storage.uri}, run {results.run_id}, {results.parts[number]}")
        _add_images(findings, part)
        _add_responses(findings, part)
        _add_annotations(findings, part)
        part.sample(sampler.add_part(number, part.images["file_name"].to_pylist()))
    return findings


def check_over(is_over: Callable[[], bool]) -> None:
    """Raise `OutputError` if the page is not wanted any more."""
    if is_over():
        raise OutputError("the page was given up, as the run was stopped; `pixscribe report` makes it later")


class _Part:
    """The tables of one part, and which image each row is about: they are in the same order."""

    def __init__(self, images: pa.Table, responses: pa.Table, annotations: pa.Table) -> None:
        self.images, self.responses, self.annotations = images, responses, annotations
        prompts = len(responses) // max(1, len(images))
        self.image_of_response = np.arange(len(responses)) // max(1, prompts)
        self.counts = _integers(responses["annotation_count"])
        self.image_of_annotation = np.repeat(self.image_of_response, np.maximum(self.counts, 0))

    def check(self, place: str) -> None:
        """Raise `OutputError` if the tables cannot be of the same images."""
        fits = len(self.images) and len(self.responses) % len(self.images) == 0
        if not (fits and len(self.image_of_annotation) == len(self.annotations)) and (
            len(self.images) or len(self.responses) or len(self.annotations)
        ):
            raise OutputError(f"{place}: the tables are not about the same images")
        if not set(self.annotations["prompt"].unique().to_pylist()) <= set(
            self.responses["prompt"].unique().to_pylist()
        ):
            raise OutputError(f"{place}: there are objects of prompts without answers")

    def sample(self, sampler: PartSampler) -> None:
        """Say what the images are like."""
        responses = self.responses
        sampler.offer("error", *_coded(responses["error_code"], self.image_of_response))
        empty = pc.and_(pc.not_equal(responses["status"], "failed"), pc.equal(responses["annotation_count"], 0))
        empties = pc.if_else(empty, responses["prompt"], pa.scalar(None, pa.string()))
        sampler.offer("empty", *_coded(empties, self.image_of_response))
        flat = pc.list_flatten(self.annotations["flags"])
        parents = _integers(pc.list_parent_indices(self.annotations["flags"]))
        sampler.offer("flag", *_coded(flat, self.image_of_annotation[parents]))
        said = pc.is_in(self.annotations["prompt"], value_set=_texts(responses))
        labels = pc.if_else(said, pa.scalar(None, pa.string()), self.annotations["label"])
        names, numbers, rows = _coded(labels, self.image_of_annotation)
        sampler.offer("label", [short_label(name) for name in names], numbers, rows)


def _add_images(findings: Findings, part: _Part) -> None:
    for row in _counted(part.images, ["status", "error_code"]):
        findings.images[row["status"]] += row["count"]
        if row["error_code"] is not None:
            errors = findings.image_errors if row["status"] == "failed" else findings.partial_errors
            errors[row["error_code"]] += row["count"]


def _add_responses(findings: Findings, part: _Part) -> None:
    responses = part.responses
    for row in _counted(responses, ["prompt", "kind", "status", "error_code"]):
        prompt = findings.prompts.setdefault(row["prompt"], PromptFindings(row["kind"]))
        prompt.statuses[row["status"]] += row["count"]
        findings.responses[row["status"]] += row["count"]
        if row["status"] == "failed":
            findings.errors.setdefault(str(row["error_code"]), Counter())[row["prompt"]] += row["count"]
    codes, numbers, images = _coded(responses["error_code"], part.image_of_response)
    pairs = np.unique(numbers * len(part.images) + images)
    for number, count in zip(*np.unique(pairs // len(part.images), return_counts=True), strict=True):
        findings.images_by_error[codes[int(number)]] += int(count)
    answered = responses.filter(pc.not_equal(responses["status"], "failed"))
    for row in _counted(answered, ["prompt", "annotation_count"]):
        findings.prompts[row["prompt"]].per_image[min(row["annotation_count"], SHARED)] += row["count"]
    for name in ("input_tokens", "output_tokens", "thought_tokens"):
        findings.tokens[name] += pc.sum(responses[name]).as_py() or 0
    findings.cost_usd += pc.sum(responses["cost_usd"]).as_py() or 0.0
    findings.priced += len(responses) - responses["cost_usd"].null_count
    findings.requests += pc.sum(responses["attempts"]).as_py() or 0
    findings.reused += pc.sum(responses["reused"]).as_py() or 0
    asked_at_us = responses["asked_at"].cast(pa.timestamp("us")).cast(pa.int64())
    findings.pace.add(_floats(asked_at_us) / 1e6, _floats(responses["latency_ms"]))


def _add_annotations(findings: Findings, part: _Part) -> None:
    annotations = part.annotations
    counts: dict[str, Counter[str]] = {}
    for row in _counted(annotations, ["prompt", "label"]):
        prompt = findings.prompts[row["prompt"]]
        if row["label"] is None:
            prompt.unlabelled += row["count"]
        elif prompt.is_text:
            prompt.labels.rare += row["count"]
        else:
            labels = counts.setdefault(row["prompt"], Counter())
            labels[short_label(row["label"])] += row["count"]
    for name, of_prompt in counts.items():
        findings.prompts[name].labels.add(of_prompt)
    for row in pc.value_counts(pc.list_flatten(annotations["flags"])).to_pylist():
        findings.flags[row["values"]] += row["counts"]
    _add_sizes(findings, annotations)


def _add_sizes(findings: Findings, annotations: pa.Table) -> None:
    sides = {name: _floats(annotations[name]) for name in ("xmin", "ymin", "xmax", "ymax", "width", "height")}
    with np.errstate(invalid="ignore", divide="ignore"):
        areas = (sides["xmax"] - sides["xmin"]) * (sides["ymax"] - sides["ymin"])
        shares = np.sqrt(areas / (sides["width"] * sides["height"]))
    prompts = _one_array(annotations["prompt"]).dictionary_encode()
    codes = _integers(prompts.indices)
    for code, name in enumerate(prompts.dictionary.to_pylist()):
        own = shares[(codes == code) & np.isfinite(shares)]
        bins = np.clip((own * SIZE_BINS).astype(np.int64), 0, SIZE_BINS - 1)
        findings.prompts[name].sizes += np.bincount(bins, minlength=SIZE_BINS)


def _texts(responses: pa.Table) -> pa.Array:
    """Prompts whose answers are sentences: each is a label of its own."""
    is_text = pc.is_in(responses["kind"], value_set=pa.array(sorted(TEXT_KINDS)))
    return responses.filter(is_text)["prompt"].unique()


def _counted(table: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    """Each combination that there is, with its `count`."""
    found: list[dict[str, Any]] = (
        table.group_by(columns, use_threads=False).aggregate([([], "count_all")]).rename_columns([*columns, "count"])
    ).to_pylist()
    return found


def _coded(values: Any, rows: Integers) -> tuple[list[str], Integers, Integers]:
    """Names, the number of each value's name, and its row, for all that are not null."""
    encoded = _one_array(values).dictionary_encode()
    codes = _floats(encoded.indices)
    known = np.isfinite(codes)
    return encoded.dictionary.to_pylist(), codes[known].astype(np.int64), rows[known]


def _integers(values: Any) -> Integers:
    """Null becomes 0."""
    return np.nan_to_num(_floats(values)).astype(np.int64)


def _floats(values: Any) -> npt.NDArray[np.float64]:
    """Null becomes NaN."""
    floats = _one_array(values).cast(pa.float64(), safe=False)
    return np.asarray(floats.to_numpy(zero_copy_only=False), dtype=np.float64)


def _one_array(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
