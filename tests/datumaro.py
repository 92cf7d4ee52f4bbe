"""datumaro, a reader of many formats, in an environment of its own: its narrow bounds would hold ours back."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

PYTHON = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixscribe-datumaro/bin/python"
needs_datumaro = pytest.mark.skipif(not PYTHON.exists(), reason="datumaro is not installed; .ci/run does it")

_SCRIPT = """
import json, sys
from datumaro import Dataset

dataset = Dataset.import_from(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
names = [category.name for category in dataset.categories()[next(iter(dataset.categories()))]]
items = []
for item in dataset:
    shapes = []
    for shape in item.annotations:
        if shape.type.name not in ("bbox", "polygon", "mask"):
            continue
        x, y, width, height = shape.get_bbox()
        shapes.append({
            "type": shape.type.name,
            "label": None if shape.label is None else names[shape.label],
            "xyxy": [float(x), float(y), float(x + width), float(y + height)],
            "mask": shape.image.tolist() if shape.type.name == "mask" else None,
        })
    items.append({"id": item.id, "size": list(item.media.size or ()), "shapes": shapes})
print(json.dumps(items))
"""


def read_with_datumaro(folder: Path, format_name: str, **options: str) -> list[dict[str, Any]]:
    """The items of a data set: id, size (height, width), and shapes with label, corners and mask."""
    command = [str(PYTHON), "-c", _SCRIPT, str(folder), format_name, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    items: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return items
