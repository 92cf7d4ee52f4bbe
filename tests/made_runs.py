"""Runs that were never asked of anybody: tables with the rows that a test thinks of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixscribe.config import dump_config, make_config
from pixscribe.progress import Totals
from pixscribe.results import RunResults
from pixscribe.source import Shard
from pixscribe.storage import open_storage
from pixscribe.tables import ANNOTATIONS, IMAGES, RESPONSES, Row, ShardRows, write_shard
from pixscribe.types import Size, Xyxy

OBJECTS = ({"name": "objects", "kind": "detect"},)
"""The prompts of most of these runs."""


@dataclass(frozen=True)
class Made:
    """One image: `answers` has the objects of each prompt, and None for an answer that failed."""

    file_name: str
    answers: dict[str, list[Row] | None]
    size: Size | None = (640, 480)
    uri: str | None = None
    sha256: str | None = None
    failed: dict[str, list[Row]] = field(default_factory=dict)
    """Objects of answers that failed: what was complete of a text that was cut."""


def thing(
    label: str | None, xyxy: Xyxy | None, polygons: Sequence[Sequence[float]] = (), rle: Row | None = None
) -> Row:
    """An object, as a row without the columns of its image."""
    edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), xyxy or (None,) * 4, strict=True))
    area = None if xyxy is None else (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])
    return {
        "label": label,
        **edges,
        "area": area,
        "polygons": [list(ring) for ring in polygons],
        "rle": rle,
        "flags": [],
    }


def write_run(
    output: Path | str,
    run_id: str,
    images: Sequence[Made],
    prompts: Sequence[dict[str, Any]] = OBJECTS,
    shard_size: int = 256,
    **sections: Any,
) -> RunResults:
    """A complete run at the end of its life."""
    storage = open_storage(str(output))
    values = {"name": "made", "source": {"uri": "/photos"}, "prompts": list(prompts), "output": {"uri": str(output)}}
    storage.write(f"runs/{run_id}/config.yaml", dump_config(make_config({**values, **sections})).encode())
    ordered = sorted(images, key=lambda image: image.file_name)
    for index, start in enumerate(range(0, len(ordered), shard_size)):
        part = ordered[start : start + shard_size]
        write_shard(storage, run_id, Shard(index, start, start + len(part)), _rows(part, prompts))
    storage.write(f"runs/{run_id}/run.json", b'{"run": "", "status": "complete", "totals": {}}')
    return RunResults(storage, run_id)


def _rows(images: Sequence[Made], prompts: Sequence[dict[str, Any]]) -> ShardRows:
    rows = ShardRows([], [], [], Totals(images=len(images)))
    for image in images:
        rows.images.append(_image_row(image))
        for prompt in sorted(prompts, key=lambda prompt: str(prompt["name"])):
            _add_answer(rows, image, prompt)
    return rows


def _add_answer(rows: ShardRows, image: Made, prompt: dict[str, Any]) -> None:
    found = image.answers[prompt["name"]]
    objects = image.failed.get(prompt["name"], []) if found is None else found
    own = {"image_id": image.sha256, "file_name": image.file_name, "prompt": prompt["name"]}
    counts = {"attempts": 1, "latency_ms": 1, "input_tokens": 0, "output_tokens": 0, "thought_tokens": 0}
    status = "failed" if found is None else "ok"
    answer = {**own, **counts, "kind": prompt["kind"], "status": status, "annotation_count": len(objects)}
    rows.responses.append(_full(RESPONSES.names, answer))
    width, height = image.size or (None, None)
    for index, each in enumerate(objects):
        rows.annotations.append(
            _full(ANNOTATIONS.names, {**own, **each, "index": index, "width": width, "height": height})
        )


def _image_row(image: Made) -> Row:
    width, height = image.size or (None, None)
    uri = image.uri or f"file:///photos/{image.file_name}"
    said = {"file_name": image.file_name, "uri": uri, "image_id": image.sha256, "width": width, "height": height}
    return _full(IMAGES.names, said)


def _full(names: Sequence[str], row: Row) -> Row:
    return {name: row.get(name) for name in names}
