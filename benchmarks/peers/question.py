"""What every tool is asked, and how it says what came of it. Standard library only: each tool has a venv of its own."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODEL = "gemini-3.5-flash"
PROMPT = "Detect every prominent object in the image."
SCHEMA = {
    "type": "object",
    "properties": {
        "boxes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "box_2d": {"type": "array", "items": {"type": "integer"}},
                    "label": {"type": "string"},
                },
                "required": ["box_2d", "label"],
            },
        }
    },
    "required": ["boxes"],
}
CONFIG = {
    "response_mime_type": "application/json",
    "response_json_schema": SCHEMA,
    "max_output_tokens": 8192,
    "seed": 7,
    "thinking_config": {"thinking_level": "MINIMAL"},
}
"""Of google-genai's GenerateContentConfig."""


@dataclass(frozen=True)
class Job:
    """The arguments of every script: URL IMAGES STORE CONCURRENCY, and whatever the script itself understands."""

    url: str
    images: Path
    store: Path
    concurrency: int
    options: tuple[str, ...]

    def paths(self) -> list[Path]:
        return sorted(self.images.glob("*.jpg"))


def read_job() -> Job:
    url, images, store, concurrency, *options = sys.argv[1:]
    return Job(url, Path(images), Path(store), int(concurrency), tuple(options))


def report(started_s: float, texts: Iterable[object]) -> None:
    """Print the last line: the seconds since `started_s` (time.monotonic), and how many answers are right."""
    elapsed_s = time.monotonic() - started_s
    print(json.dumps({"elapsed_s": elapsed_s, "right": sum(map(is_right, texts))}), flush=True)


def is_right(text: object) -> bool:
    """Whether this is what the emulator sees in every image when it does not look: two boxes with labels."""
    try:
        boxes = (json.loads(text) if isinstance(text, str) else text)["boxes"]  # type: ignore[index]
        return len(boxes) == 2 and all(len(box["box_2d"]) == 4 and box["label"] for box in boxes)
    except (TypeError, KeyError, ValueError):
        return False
