"""What must be true of an output after whatever happened to the runs that wrote it."""

import math
from pathlib import Path

import pyarrow.parquet as pq

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator
from tests.conftest import annotate

KEY = "test-key-4f1c"
TABLES = ("images", "responses", "annotations")


def check_output(config: RunConfig, run_id: str) -> None:
    """One row per image of the manifest, whole parts and nothing else, counts that agree, boxes inside, no key."""
    output = Path(config.output.uri)
    images, responses, annotations = (
        pq.read_table(output / table / f"run={run_id}", partitioning=None).to_pylist() for table in TABLES
    )
    manifest = pq.read_table(output / "runs" / run_id / "manifest.parquet").to_pylist()
    assert sorted(row["uri"] for row in images) == sorted(row["uri"] for row in manifest)
    prompts = {prompt.name for prompt in config.prompts}
    assert len(responses) == len(images) * len(prompts)
    assert {row["prompt"] for row in responses} == prompts
    assert sum(row["annotation_count"] for row in responses) == len(annotations)
    for row in images:
        assert (row["status"] == "ok") == (row["error_code"] is None), row
    for row in responses:
        assert (row["status"] == "failed") == (row["error_code"] is not None), row
    check_boxes(annotations)
    check_files(output)


def check_boxes(annotations: list[dict[str, object]]) -> None:
    """Finite, in order, and inside the displayed image."""
    for row in annotations:
        xmin, ymin, xmax, ymax, width, height = (
            float(str(row[name])) if row[name] is not None else None
            for name in ("xmin", "ymin", "xmax", "ymax", "width", "height")
        )
        if xmin is None or ymin is None or xmax is None or ymax is None or width is None or height is None:
            assert (xmin, ymin, xmax, ymax) == (None,) * 4, row
            continue
        assert all(math.isfinite(edge) for edge in (xmin, ymin, xmax, ymax)), row
        assert 0 <= xmin < xmax <= width, row
        assert 0 <= ymin < ymax <= height, row


def check_files(output: Path) -> None:
    """Every part can be read, nothing lies about under a part's name, and the key is in no byte of anything."""
    for path in output.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
            if path.suffix == ".parquet":
                pq.read_metadata(path)
    for table in TABLES:
        for path in (output / table).rglob("*"):
            assert path.is_dir() or path.name.startswith("shard-"), path


async def check_rerun_is_free(config: RunConfig, emulator: Emulator) -> None:
    """Running a finished run again asks nothing for what is ok, and its rows are the same."""
    emulator.always()
    first = await annotate(config, run_id="first-again")
    emulator.books.reset()
    second = await annotate(config, run_id="second-again")
    assert emulator.books.questions == []
    assert emulator.books.uploads == []
    assert second.totals.objects == first.totals.objects
    for table in ("images", "annotations"):
        parts = [
            pq.read_table(f"{config.output.uri}/{table}/run={run}", partitioning=None)
            for run in ("first-again", "second-again")
        ]
        assert parts[0].equals(parts[1])
