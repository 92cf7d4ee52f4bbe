"""SIGKILL at random moments, again and again. By hand: PIXSCRIBE_KILLS=25 PIXSCRIBE_KILL_IMAGES=1000."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from tests.conftest import ROOT, MakeConfig, annotate, write_yaml
from tests.invariants import check_output
from tests.test_end_to_end import digests

KILLS = int(os.environ.get("PIXSCRIBE_KILLS", "8"))
IMAGES = int(os.environ.get("PIXSCRIBE_KILL_IMAGES", "400"))
IN_FLIGHT = 16
LATENCY_S = 0.2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.new("RGB", (64, 48), "white")
    image.paste((200, 30, 30), (10, 10, 40, 30))
    for number in range(IMAGES):
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(folder / f"{number:04d}.png")
    return folder


def kept_keys(output: Path) -> set[str]:
    """The questions whose answers are durable: in a journal, or in a part."""
    keys: set[str] = set()
    for path in output.glob("runs/*/journal/*.arrow"):
        keys.update(pa.ipc.open_file(path).read_all()["request_key"].to_pylist())
    for path in output.glob("responses/*/*.parquet"):
        keys.update(pq.read_table(path, columns=["request_key"], partitioning=None)["request_key"].to_pylist())
    return keys


def start(path: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tests.run_without_prefect", str(path), "r"], cwd=ROOT)


def wait_for_questions(emulator: Emulator, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while len(emulator.books.questions) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


async def test_p1_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    make: MakeConfig, pictures: Path, tmp_path: Path
):
    def config_of(emulator: Emulator, name: str) -> RunConfig:
        return make(
            source={"uri": str(pictures)},
            model={"base_url": emulator.url, "transport": "inline"},
            prompts=[{"name": "objects", "kind": "detect"}],
            limits={"concurrency": IN_FLIGHT},
            execution={"shard_size": 64},
            output={"uri": str(tmp_path / name)},
        )

    with Emulator() as emulator:
        await annotate(config_of(emulator, "calm"), run_id="r")
    rows = pq.read_table(tmp_path / "calm" / "responses", partitioning=None).to_pylist()
    key_of = {row["image_id"]: row["request_key"] for row in rows}

    dice, kept_at = random.Random(7), list[tuple[int, set[str]]]()
    with Emulator(EmulatorOptions(latency_s=LATENCY_S, jitter_s=0.1)) as emulator:
        path = write_yaml(tmp_path / "config.yaml", config_of(emulator, "killed"))
        # so that all kills find some of the run still to be done
        longest_s = 1.5 * IMAGES / (IN_FLIGHT / (LATENCY_S + 0.05)) / KILLS
        for _ in range(KILLS):
            process = start(path)
            wait_for_questions(emulator, len(emulator.books.questions) + 1)
            time.sleep(dice.uniform(0, longest_s))
            process.kill()
            assert process.wait() == -signal.SIGKILL
            time.sleep(LATENCY_S + 0.3)  # what was on the wire is answered to nobody
            kept_at.append((len(emulator.books.questions), kept_keys(tmp_path / "killed")))
        assert start(path).wait() == 0
    keys = [key_of[question.images[0]] for question in emulator.books.questions]
    for asked, kept in kept_at:
        assert kept.isdisjoint(keys[asked:])
    answered = Counter(question.images[0] for question in emulator.books.answered())
    twice = answered.total() - len(answered)
    print(f"answered twice: {twice}; durable at each kill: {[len(kept) for _, kept in kept_at]}")
    assert len(answered) == IMAGES == len(pq.read_table(tmp_path / "killed" / "annotations"))
    assert twice <= KILLS * (IN_FLIGHT + IN_FLIGHT / LATENCY_S)
    for table in ("images", "annotations"):
        assert digests(tmp_path / "calm", table) == digests(tmp_path / "killed", table)
    check_output(config_of(emulator, "killed"), "r")
