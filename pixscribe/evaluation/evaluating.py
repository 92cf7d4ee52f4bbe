"""The comparison as a whole."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from pixscribe.config import shortened
from pixscribe.errors import ConfigError
from pixscribe.evaluation.comparison import Comparison
from pixscribe.evaluation.images import counted, find_common_images, read_common_images
from pixscribe.evaluation.labels import Vocabulary, read_synonyms
from pixscribe.evaluation.outcome import EVALUATION_VERSION, Evaluation, PromptEvaluation, TruthSummary
from pixscribe.evaluation.truth import Truth, read_truth
from pixscribe.results import RunResults
from pixscribe.types import Kind

BOX_KINDS: frozenset[Kind] = frozenset({"detect", "segment"})


def evaluate_run(
    results: RunResults, truth_file: Path, label_map: Path | None = None, prompts: Sequence[str] = ()
) -> Evaluation:
    """Compare a run with ground truth: each of its prompts that have boxes, or only those named.

    Raises `ConfigError` for a file that is not as it should be and if there is nothing to compare, `OutputError` for
    tables that cannot be read.
    """
    kinds = _chosen_prompts(results, prompts)
    truth = read_truth(truth_file)
    vocabulary = Vocabulary(truth.categories)
    if label_map is not None:
        vocabulary.add_synonyms(read_synonyms(label_map), str(label_map))
    common = find_common_images(results, truth)
    has_outlines = any(each.has_outline for objects in truth.objects.values() for each in objects)
    comparisons = [Comparison(name, kind, vocabulary, has_outlines=has_outlines) for name, kind in kinds.items()]
    for image in read_common_images(results, truth, common):
        for comparison in comparisons:
            comparison.add(image)
    outcomes = tuple(comparison.outcome() for comparison in comparisons)
    return Evaluation(
        version=EVALUATION_VERSION,
        run=results.run_id,
        output=results.storage.uri,
        truth=_summary(truth, vocabulary),
        images=common.counts(),
        warnings=(*_state(results), *common.warnings()),
        notes=(
            *_score_notes(outcomes),
            *(note for comparison in comparisons for note in comparison.notes()),
            *_general_notes(vocabulary, common.counts().run_only),
        ),
        prompts=outcomes,
    )


def save_evaluation(results: RunResults, evaluation: Evaluation) -> str:
    """Write `runs/<id>/evaluation.json` in place of an earlier one. Returns its URI. Raises `OutputError`."""
    key = f"runs/{results.run_id}/evaluation.json"
    results.storage.write(key, as_json(evaluation))
    return results.storage.uri_of(key)


def as_json(evaluation: Evaluation) -> bytes:
    """One JSON object on one line."""
    return orjson.dumps(evaluation)


def _chosen_prompts(results: RunResults, names: Sequence[str]) -> dict[str, Kind]:
    kinds = {name: kind for name, kind in results.kinds.items() if kind in BOX_KINDS}
    if not kinds:
        raise ConfigError(f"run {results.run_id}: has no prompt of kind detect or segment, which are those with boxes")
    for name in names:
        if name not in kinds:
            raise ConfigError(
                f"--prompt {shortened(name)}: is no prompt with boxes of this run; allowed: {', '.join(kinds)}"
            )
    return {name: kind for name, kind in kinds.items() if not names or name in names}


def _summary(truth: Truth, vocabulary: Vocabulary) -> TruthSummary:
    objects = [each for many in truth.objects.values() for each in many]
    crowds = sum(each.iscrowd for each in objects)
    return TruthSummary(truth.file, len(truth.images), len(objects), crowds, len(vocabulary.names))


def _state(results: RunResults) -> Iterator[str]:
    if not results.is_complete:
        yield "the run is not complete: only what it has committed so far is evaluated"


def _score_notes(outcomes: Sequence[PromptEvaluation]) -> Iterator[str]:
    scored = sum(each.scored_objects for each in outcomes)
    objects = sum(each.answered_objects for each in outcomes)
    if scored:
        yield f"{scored} of {objects} objects have a score, which orders them for mAP; the others count as if it were 1"
    else:
        yield (
            "the model gives no scores, so every object counts alike (score 1), in the order of the truth's images and "
            "of the answer: mAP is that of this one operating point"
        )


def _general_notes(vocabulary: Vocabulary, run_only: int) -> Iterator[str]:
    if run_only:
        yield f"{counted(run_only, 'image')} of the run not in the truth: left out"
    if vocabulary.merged:
        some = ", ".join(vocabulary.merged[:5])
        yield f"labels of the truth that differ in case or outer space only, taken for one: {some}"
