"""The page of a run: `runs/<id>/report.html`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pixscribe.config import RunConfig
from pixscribe.errors import ConfigError, OutputError
from pixscribe.report.blocks import Section
from pixscribe.report.evaluation_section import Judgement, read_judgement
from pixscribe.report.findings import Findings, check_over, gather
from pixscribe.report.gallery import Gallery, GalleryImage, Picture, gallery_image
from pixscribe.report.page import PAGE_BYTES, TEXT_BYTES, Page, render_page
from pixscribe.report.sampling import Sample, Sampler
from pixscribe.report.sections import (
    flag_section,
    overview,
    prompt_section,
    question_texts,
    run_section,
    shares,
    time_section,
    verdict,
)
from pixscribe.report.thumbnails import LATE, LIMIT_S, SourceRules, load_pictures
from pixscribe.report.wording import duration, moment, plural, usd
from pixscribe.results import ImageRows, RunResults
from pixscribe.run import TABLES
from pixscribe.source import count_manifest
from pixscribe.tables import ANNOTATIONS, IMAGES, RESPONSES

SAMPLE = 240
MAX_SAMPLE = 2000
PICTURE_BYTES = PAGE_BYTES - TEXT_BYTES - 1_000_000
"""What is left for pictures beside the texts and the page itself."""
REPORT = "report.html"


def write_report(
    results: RunResults,
    *,
    sample: int = SAMPLE,
    summary: Mapping[str, Any] | None = None,
    limit_s: float = LIMIT_S,
    is_over: Callable[[], bool] = lambda: False,
) -> str:
    """Write the page beside the run, and return its URI. Raises as `make_report` does, and if it cannot be written."""
    key = f"runs/{results.run_id}/{REPORT}"
    results.storage.write(key, make_report(results, sample=sample, summary=summary, limit_s=limit_s, is_over=is_over))
    return results.storage.uri_of(key)


def make_report(
    results: RunResults,
    *,
    sample: int = SAMPLE,
    summary: Mapping[str, Any] | None = None,
    limit_s: float = LIMIT_S,
    is_over: Callable[[], bool] = lambda: False,
) -> bytes:
    """The page of a run: one HTML file of less than `PAGE_BYTES`.

    Its numbers are about all images, its gallery shows `sample` of them, 1 to `MAX_SAMPLE`; pictures are waited for
    `limit_s` at most. `summary` is what run.json will say, where that is not written yet. Raises `ConfigError` for a
    sample out of range, `OutputError` if the tables cannot be read, or soon after `is_over`: then there is no page.
    """
    if not 1 <= sample <= MAX_SAMPLE:
        raise ConfigError(f"--sample {sample}: should be from 1 to {MAX_SAMPLE}")
    told = results.summary if summary is None else summary
    judgement = read_judgement(results)
    sampler = Sampler(sample, judgement.worst)
    findings = gather(results, sampler, is_over)
    chosen = sampler.choose(findings.label_counts())
    gallery = _gallery(results, chosen, findings, judgement, limit_s, is_over)
    check_over(is_over)
    return render_page(_page(results, told, findings, judgement, gallery))


def _page(
    results: RunResults, summary: Mapping[str, Any], findings: Findings, judgement: Judgement, gallery: Gallery
) -> Page:
    config = _config(results)
    questions = question_texts(config)
    prompts = [
        prompt_section(name, findings.prompts[name], questions.get(name))
        for name in sorted(findings.prompts, key=[*questions, *sorted(findings.prompts)].index)
    ]
    tables = {table: results.storage.uri_of(f"{table}/run={results.run_id}") for table in TABLES}
    flags = [flag_section(findings)] if findings.flags else []
    parts: list[Section | Gallery] = [
        overview(findings, summary, config),
        gallery,
        *judgement.sections,
        *prompts,
        *flags,
    ]
    parts += [time_section(findings), run_section(results.run_id, summary, config, tables)]
    return Page(
        title=results.run_id,
        verdict=verdict(findings),
        parts=parts,
        facts=tuple(_facts(findings, summary)),
        warning=_warning(results, summary, findings),
        shares=shares(findings) if findings.images else (),
    )


def _facts(findings: Findings, summary: Mapping[str, Any]) -> Iterator[str]:
    for key in ("model", "started_at"):
        if isinstance(summary.get(key), str):
            yield moment(summary[key])
    yield plural(findings.objects, "object")
    elapsed_s = summary.get("elapsed_s")
    if isinstance(elapsed_s, int | float):
        yield duration(elapsed_s)
    if findings.priced:
        yield f"{usd(findings.cost_usd)} USD"


def _warning(results: RunResults, summary: Mapping[str, Any], findings: Findings) -> str:
    if summary.get("status") == "complete":
        return ""
    written = f"{findings.images.total():,}"
    with suppress(OutputError, FileNotFoundError):
        total = count_manifest(results.storage, f"runs/{results.run_id}/manifest.parquet")
        written = f"{written} of {total:,}"
    return (
        f"This run is not finished: {written} images have rows so far, and this page is about these. "
        "`pixscribe run` with the same config goes on with it."
    )


def _config(results: RunResults) -> RunConfig | None:
    """What the run froze; a page can do without, if another version wrote it."""
    with suppress(ConfigError, OutputError, FileNotFoundError):
        return results.config
    return None


def _gallery(
    results: RunResults,
    sample: Sample,
    findings: Findings,
    judgement: Judgement,
    limit_s: float,
    is_over: Callable[[], bool],
) -> Gallery:
    rows = sorted(_sampled(results, sample), key=lambda one: (_trouble(one), one.image["file_name"]))
    pictures = load_pictures([one.image for one in rows], PICTURE_BYTES, _source_rules(results), limit_s, is_over)
    images = [judgement.with_truth(_with_picture(*each)) for each in zip(rows, pictures, strict=True)]
    late = pictures.count(LATE)
    waited = f" {plural(late, 'picture')} could not be read within {duration(limit_s)}." if late else ""
    return Gallery(
        images=images,
        images_total=findings.images.total(),
        about=sample.about + waited,
        layers=judgement.layers,
        label_counts=findings.label_counts(),
    )


def _source_rules(results: RunResults) -> SourceRules:
    config = _config(results)
    return SourceRules(config.image.max_pixels, config.source.allow_private_hosts) if config else SourceRules()


def _with_picture(rows: ImageRows, picture: Picture | str) -> GalleryImage:
    image = gallery_image(rows)
    if isinstance(picture, Picture):
        return replace(image, picture=picture)
    return replace(image, no_picture=picture)


def _trouble(rows: ImageRows) -> int:
    """What went wrong first."""
    if rows.image["status"] != "ok":
        return 0 if rows.image["status"] == "failed" else 1
    is_repaired = any(row["status"] != "ok" for row in rows.responses) or any(row["flags"] for row in rows.annotations)
    return 2 if is_repaired else 3


def _sampled(results: RunResults, sample: Sample) -> Iterator[ImageRows]:
    """All rows of the chosen images."""
    parts = [results.parts[number] for number in sample.rows]
    columns = {"images": IMAGES.names, "responses": RESPONSES.names, "annotations": ANNOTATIONS.names}
    for tables, rows in zip(results.read_parts(columns, parts), sample.rows.values(), strict=True):
        yield from _rows_of(tables, rows)


def _rows_of(tables: tuple[pa.Table, ...], rows: Sequence[int]) -> Iterator[ImageRows]:
    """All tables are in the same order of images, and each response says how many objects it has."""
    images, responses, annotations = tables
    prompts = len(responses) // len(images)
    counts = responses["annotation_count"].to_numpy().reshape(len(images), prompts).sum(axis=1)
    stops = np.cumsum(counts)
    for row in rows:
        yield ImageRows(
            images.slice(row, 1).to_pylist()[0],
            responses.slice(row * prompts, prompts).to_pylist(),
            annotations.slice(int(stops[row] - counts[row]), int(counts[row])).to_pylist(),
        )
