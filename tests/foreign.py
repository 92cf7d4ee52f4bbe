"""Tools that have an environment of their own, which `.ci/run` makes: they would not go with ours."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def ask(tool: str, *arguments: str | Path) -> Any:
    """What `tests/<tool>_reader.py` says, as JSON; the test is skipped where the tool is not installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = cache / f"pixscribe-{tool}/bin/python"
    if not python.exists():
        pytest.skip(f"{tool} is not installed; .ci/run puts it below {cache}")
    command = [python, ROOT / f"tests/{tool}_reader.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
