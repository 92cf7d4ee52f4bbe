"""Runs that are written down instead of asked for, so that each number in them is known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from pixscribe.asking import Answer
from pixscribe.config import RunConfig, dump_config, make_config
from pixscribe.results import RunResults, open_results
from pixscribe.run import make_questions
from pixscribe.source import Shard
from pixscribe.storage import open_storage
from pixscribe.tables import Labelled, add_up, make_rows, write_shard
from pixscribe.types import ErrorCode, ImageRef, ModelObject, ParsedAnswer, PreparedImage, Usage, Xyxy

SIDE = 1000
"""Of the images unless something else is said: the model's coordinates are their pixels."""


@dataclass(frozen=True)
class Thing:
    """One object of an answer: `xyxy` and the polygon's points in thousandths of the image; words have neither."""

    label: str | None
    xyxy: Xyxy | None = None
    polygon: tuple[float, ...] = ()

    def to_model(self) -> ModelObject:
        if self.xyxy is None:
            return ModelObject(self.label)
        xmin, ymin, xmax, ymax = self.xyxy
        box = (ymin, xmin, ymax, xmax)
        return ModelObject(self.label, box, box, (self.polygon,) if self.polygon else ())


Said = Sequence[Thing] | str | None
"""What was answered to one prompt: objects, the words of a text, or nothing, as nobody is there."""


@dataclass(frozen=True)
class Seen:
    """One image, and what was said to each prompt; `failed` names the prompts without an answer, and why."""

    file_name: str
    said: Mapping[str, Said] = field(default_factory=dict)
    failed: Mapping[str, ErrorCode] = field(default_factory=dict)
    size: tuple[int, int] = (SIDE, SIDE)
    content: bytes = b""
    """Stands for the file, which there need not be."""
    uri: str = ""

    def labelled(self, prompts: Sequence[str]) -> Labelled:
        ref = ImageRef(self.file_name, self.uri or f"file:///photos/{self.file_name}", 1)
        return Labelled(ref, self._prepared(), {prompt: self._answer(prompt) for prompt in prompts})

    def _prepared(self) -> PreparedImage | None:
        if "read_error" in self.failed.values():
            return None
        digest = sha256(self.content or self.file_name.encode()).hexdigest()
        width, height = self.size
        return PreparedImage(digest, 1, width, height, 1, "image/png", b"", "image/png", width, height, digest)

    def _answer(self, prompt: str) -> Answer:
        if prompt in self.failed:
            return Answer("failed", None, error_code=self.failed[prompt], error="so it was told")
        said = self.said.get(prompt)
        things = [Thing(said)] if isinstance(said, str) else said or []
        parsed = ParsedAnswer(tuple(thing.to_model() for thing in things))
        usage = Usage(input_tokens=100, output_tokens=10 * len(things))
        return Answer("ok", "key", text="[]", parsed=parsed, model="m", attempts=1, usage=usage, cost_usd=0.001)


def run_config(output: Path | str, prompts: Mapping[str, Any], **sections: Any) -> RunConfig:
    """`prompts` are kinds by name, or the keys of a prompt."""
    asked = [{"name": name, **(keys if isinstance(keys, dict) else {"kind": keys})} for name, keys in prompts.items()]
    return make_config(
        {
            "name": "test",
            "source": {"uri": "/photos"},
            "prompts": asked,
            "output": {"uri": str(output)},
            **sections,
        }
    )


def write_run(
    config: RunConfig, run_id: str, images: Sequence[Seen], *, shard_size: int = 256, is_complete: bool = True
) -> RunResults:
    """Commit the images, in shards that are cut from them in their order."""
    storage = open_storage(config.output.uri)
    storage.write(f"runs/{run_id}/config.yaml", dump_config(config).encode())
    questions = make_questions(config)
    names = [question.name for question in questions]
    for shard, shards_images in _shards(images, shard_size):
        rows = make_rows([image.labelled(names) for image in shards_images], questions, uploads=0)
        write_shard(storage, run_id, shard, rows)
    if is_complete:
        account = {"run": run_id, "status": "complete", "totals": asdict(add_up(storage, run_id))}
        storage.write(f"runs/{run_id}/run.json", orjson.dumps(account))
    return open_results(f"{config.output.uri}@{run_id}")


def _shards(images: Sequence[Seen], shard_size: int) -> Iterator[tuple[Shard, Sequence[Seen]]]:
    for index, start in enumerate(range(0, len(images), shard_size)):
        part = images[start : start + shard_size]
        yield Shard(index, start, start + len(part)), part
