import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import yaml
from hypothesis import HealthCheck, settings

from benchmarks.library_run import annotate
from pixscribe.config import EMULATOR, RunConfig, make_config
from pixscribe.emulator import Emulator

__all__ = ["annotate"]

# hypothesis would fail an example for being slow, which on a busy machine says nothing about the code
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LONG_FILES = (
    "test_serving",
    "test_engines",
    "test_batch_mode",
    "test_cli",
    "test_kills",
    "test_report",
    "test_prefect_server",
)
"""They are begun first, or else one process would be at the last of them when all others have ended."""

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "data/samples/images"

BOXES: dict[str, Any] = {
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
"""The schema of an answer with boxes, as a user of the SDK would write it."""

MakeConfig = Callable[..., RunConfig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)


@pytest.fixture(autouse=True)
def _no_cloud_and_no_key_of_the_developer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("GEMINI_API_KEY", "test-key-4f1c")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, emulator: Emulator) -> MakeConfig:
    """Make a config of the samples against the emulator; sections are given as keyword arguments."""

    def make_one(**sections: Any) -> RunConfig:
        values: dict[str, Any] = {
            "name": "test",
            "source": {"uri": str(SAMPLES)},
            "prompts": [{"name": "objects", "kind": "detect"}, {"name": "outlines", "kind": "segment"}],
            "output": {"uri": str(tmp_path / "out")},
            **sections,
        }
        values["model"] = {"base_url": emulator.url, **values.get("model", {})}
        values["limits"] = {"requests_per_minute": 100_000, **values.get("limits", {})}
        values["retry"] = {"max_wait_s": 0.01, **values.get("retry", {})}
        return make_config(values)

    return make_one


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """OUTPUT@RUN_ID of a run that asked the samples for `objects` (boxes) and `outlines`."""
    output = tmp_path_factory.mktemp("samples") / "out"
    config = make_config(
        {
            "name": "samples",
            "source": {"uri": str(SAMPLES)},
            "prompts": [{"name": "objects", "kind": "detect"}, {"name": "outlines", "kind": "segment"}],
            "output": {"uri": str(output)},
            "model": {"base_url": EMULATOR},
            "limits": {"requests_per_minute": 100_000},
            "execution": {"shard_size": 7},
        }
    )
    return f"{output}@{asyncio.run(annotate(config)).run}"


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real S3 server."""
    server = Path(sys.executable).with_name("moto_server")
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as file, subprocess.Popen([server, "-H", "127.0.0.1", "-p", "0"], stderr=file) as process:
        try:
            yield _port_from(log)
        finally:
            process.terminate()


def _port_from(log: Path) -> int:
    for _ in range(600):
        for line in log.read_text().splitlines():
            if "Running on http://127.0.0.1:" in line:
                return int(line.rsplit(":", 1)[1])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> pafs.S3FileSystem:
    """The buckets `images` and `tables` of that server, as the environment names it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    filesystem = pafs.S3FileSystem(
        endpoint_override=f"http://127.0.0.1:{s3_port}", region="us-east-1", allow_bucket_creation=True
    )
    filesystem.create_dir("images")
    filesystem.create_dir("tables")
    return filesystem


def pixscribe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [str(Path(sys.executable).with_name("pixscribe")), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=180, cwd=ROOT, check=False, env={**os.environ, **environment}
    )


def write_yaml(path: Path, config: RunConfig) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path
