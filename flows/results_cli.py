"""The commands that turn tables into something a person looks at, checks or hands on."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from pixscribe.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from pixscribe.diff.result import RunDiff
    from pixscribe.evaluation import Evaluation
    from pixscribe.results import RunResults

RunName = Annotated[str, Parameter(help="OUTPUT@RUN_ID, or the folder OUTPUT/runs/RUN_ID.")]
AsJson = Annotated[bool, Parameter(name="--json", help="One JSON object on stdout.", negative="")]
FORMATS_HELP = "coco, yolo, yolo-seg, voc, cvat, labelstudio, huggingface, imagefolder, fiftyone or webdataset."
Prompts = Annotated[tuple[str, ...], Parameter(name="--prompt", help="Only this one; may be given again.", negative="")]


def add_commands(app: App) -> None:
    """Make them commands of `app`."""
    for command in (report, export, evaluate, diff):
        app.command(command)


def report(
    run: RunName,
    *,
    to: Annotated[str | None, Parameter(help="Write the page to this file, of a folder or a bucket, instead.")] = None,
    sample: Annotated[int, Parameter(help="How many images the gallery shows at most.")] = 240,
) -> int:
    """Write the page of a run: totals, distributions, and a gallery with the objects drawn over their images.

    What is beside the run already, the page of its end, is replaced. A run that is not finished gets a page of what it
    has so far.

    Example: pixscribe report data/runs@demo-20261122-101500-3fa94c1e
    """
    from pixscribe.report import make_report, write_report
    from pixscribe.results import open_results

    place = None if to is None else _file_of(to)
    results = open_results(run)
    if place is None:
        print(write_report(results, sample=sample))
    else:
        _write_page(place, make_report(results, sample=sample))
        print(to)
    return 0


def export(
    runs: Annotated[
        tuple[str, ...], Parameter(help="OUTPUT@RUN_ID, or the folder OUTPUT/runs/RUN_ID; one or several.", negative="")
    ] = (),
    *,
    format_: Annotated[str, Parameter(name="--format", help=FORMATS_HELP)],
    to: Annotated[str, Parameter(help="The folder of the data set.")],
    prompt: Prompts = (),
    status: Annotated[
        tuple[Literal["ok", "partial", "failed"], ...],
        Parameter(help="Images of these only; may be given again.", negative=""),
    ] = ("ok",),
    copy_images: Annotated[
        bool, Parameter(help="Put the images into the data set, as some formats do anyway.", negative="")
    ] = False,
    link_images: Annotated[bool, Parameter(help="As --copy-images, with links where possible.", negative="")] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an earlier export.", negative="")] = False,
) -> int:
    """Write the labels of one run or several as a data set for another tool.

    Images without an answer to each prompt are left out, and said so; --status takes them too, with the objects of the
    answers that there are. Of an image that several runs hold, the last one named counts that answered all prompts.
    Exits with 1 if pictures could not be had.

    Example: pixscribe export data/runs@demo-20261122-101500-3fa94c1e --format yolo --to datasets/demo --copy-images
    """
    from flows.console import print_export, progress_bar, say
    from flows.memory import keep_memory_together
    from pixscribe.exports import ExportOptions, export_runs
    from pixscribe.results import open_results

    if copy_images and link_images:
        raise ConfigError("--copy-images and --link-images: give one of the two")
    folder = _data_set_folder(to)
    pictures: Literal["copy", "link"] | None = "copy" if copy_images else "link" if link_images else None
    options = ExportOptions(prompt, frozenset(status), pictures, overwrite)
    keep_memory_together()
    # what was written so far lies beside the folder, and is removed on the way out
    with _signals_unwind(), progress_bar("images") as progress:
        opened = [open_results(run) for run in runs]
        summary = export_runs(opened, format_, folder, options, lambda text: say(f"pixscribe: {text}"), progress)
    print_export(summary)
    return 1 if summary.lost_pictures else 0


def evaluate(
    run: RunName,
    *,
    truth: Annotated[Path, Parameter(help="COCO instances; images are matched by file name.")],
    label_map: Annotated[Path | None, Parameter(help="YAML, such as car: [auto, sedan].")] = None,
    prompt: Prompts = (),
    as_json: AsJson = False,
) -> int:
    """Compare a run with ground truth: mAP, precision, recall and F1 per label, confusions, the worst images.

    Images are matched by file name, or else by the end of it, and labels without regard to case. Images that only the
    run or only the truth has are left out; in one whose answer failed, every object counts as missed. Precision,
    recall, F1 and confusions are those of boxes at IoU 0.5; mAP is COCO's, of boxes and, where both sides have them, of
    masks. The model gives no scores, so every object counts alike. The numbers are kept beside the run as
    evaluation.json and shown in its page.

    Example: pixscribe evaluate data/runs@demo-20261122-101500-3fa94c1e --truth data/samples/truth.json
    """
    from flows.console import print_evaluation, say
    from pixscribe.evaluation import as_json as evaluation_json
    from pixscribe.evaluation import evaluate_run
    from pixscribe.results import open_results

    if truth.is_dir():  # as an empty text is, which means the folder one is in
        raise ConfigError(f"--truth {truth}: is a folder; should be a file of COCO instances")
    results = open_results(run)
    evaluation = evaluate_run(results, truth, label_map, prompt)
    for warning in evaluation.warnings:
        say(f"warning: {warning}")
    _keep_evaluation(results, evaluation)
    if as_json:
        print(evaluation_json(evaluation).decode())
    else:
        print_evaluation(evaluation)
    return 0


def _keep_evaluation(results: "RunResults", evaluation: "Evaluation") -> None:
    """Put it beside the run and into its page. The numbers are there, whatever becomes of that."""
    from flows.console import say
    from pixscribe.evaluation import save_evaluation

    try:
        say(f"written to {save_evaluation(results, evaluation)}")
    except OutputError as error:
        say(f"pixscribe: the evaluation is not kept: {error}")
        return
    try:
        from pixscribe.report import write_report

        say(f"shown in {write_report(results)}")
    except Exception as error:
        say(f"pixscribe: the page of the run could not be written: {type(error).__name__}: {error}".replace("\n", " "))


def diff(
    before: RunName,
    after: RunName,
    *,
    prompt: Prompts = (),
    same_iou: Annotated[float, Parameter(help="Boxes and outlines that overlap by this share have not moved.")] = 0.99,
    fail_above: Annotated[
        float | None,
        Parameter(help="Exit with 1 if a larger share of objects changed, such as 0.05, or nothing could be compared."),
    ] = None,
    to: Annotated[
        str | None, Parameter(help="Write a page that shows both to this file, of a folder or a bucket.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say what changed between two runs: images, and objects matched by overlap and label.

    Compared are images of the same file name, and of them the prompts that both runs asked. Boxes of one label that
    overlap (IoU 0.5) are same or moved, boxes of two labels relabelled, and what is left is new or gone; so are the
    objects of an answer that failed in one run. Texts of captions and questions count as objects: with other words they
    are relabelled. The share is that of moved, relabelled, new and gone ones among all, a pair counted once. Objects of
    images that only one run has are counted apart.

    For --fail-above, an answer without objects that failed in the second run counts as one changed object, and runs
    without a common image or prompt exit with 1.

    Example: pixscribe diff data/runs@monday data/runs@tuesday --fail-above 0.05
    """
    from flows.console import print_diff, say
    from pixscribe.diff import compare_runs
    from pixscribe.results import open_results

    _check_share("--fail-above", fail_above, 0)
    _check_share("--same-iou", same_iou, 0.5)
    place = None if to is None else _file_of(to)
    runs = open_results(before), open_results(after)
    found = compare_runs(*runs, prompts=prompt, same_iou=same_iou)
    for side in (found.before, found.after):
        if not side.is_complete:
            say(f"{side.name} is not finished: compared are the {side.images} of its images that it has come to")
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        print_diff(found)
    if place is not None:
        from pixscribe.diff.page import render_diff

        _write_page(place, render_diff(found, *runs))
        say(f"shown in {to}")
    return 0 if fail_above is None else _judge(found, fail_above)


def _judge(found: "RunDiff", fail_above: float) -> int:
    """The exit code, with a sentence if it is not 0."""
    from flows.console import say
    from flows.diff_lines import share_sentence

    if found.not_compared:
        say(f"pixscribe: nothing was compared, as {found.not_compared}: --fail-above {fail_above} cannot be judged")
        return 1
    if float(found.share) <= fail_above:
        return 0
    say(f"pixscribe: {share_sentence(found)}, which is above --fail-above {fail_above}")
    return 1


def _file_of(to: str) -> tuple[str, str]:
    """The URI of a folder, and the name of a file in it. Raises `ConfigError`."""
    from pixscribe.objects import BUCKET_SCHEMES
    from pixscribe.storage import is_bucket

    folder, _, name = to.removeprefix("file://").rpartition("/")
    is_foreign = "://" in to and not to.startswith("file://") and not is_bucket(to)
    if is_foreign or not name or folder.endswith(":/"):
        schemes = ", ".join(f"{scheme}://" for scheme in sorted(BUCKET_SCHEMES))
        raise ConfigError(f"--to {to}: should be a file: a path, or a URI of {schemes} with a bucket and a name")
    return (folder if is_bucket(to) else str(Path(to.removeprefix("file://")).absolute().parent)), name


def _write_page(place: tuple[str, str], page: bytes) -> None:
    from pixscribe.storage import open_storage

    folder, name = place
    open_storage(folder).write(name, page)


def _check_share(option: str, value: float | None, least: float) -> None:
    if value is not None and not least <= value <= 1:
        raise ConfigError(f"{option} {value}: should be from {least} to 1")


def _data_set_folder(to: str) -> Path:
    path = to.removeprefix("file://")
    if not path or "://" in path:
        raise ConfigError(f"--to {to or repr(to)}: should be a folder of this machine, which may not exist yet")
    return Path(path)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """SIGTERM and SIGHUP end the process as Ctrl-C does, with what stands in `finally`, and with 143 and 129."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # what nohup has told not to hear of a terminal that closes goes on
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
