import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOW_FILES = sorted((ROOT / "flows").glob("*.py"))


def test_the_flow_loads_as_an_entrypoint_from_the_project_root():
    code = (
        "from prefect.flows import load_flow_from_entrypoint as load;"
        "flow = load('flows/annotate.py:annotate', use_placeholder_flow=False);"
        "print(flow.name, sorted(flow.parameters.properties), flow.parameters.definitions is not None)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "annotate ['config', 'new', 'run_id'] True\n", done.stderr


@pytest.mark.parametrize("path", FLOW_FILES, ids=lambda path: path.name)
def test_no_flow_file_hides_a_package_when_prefect_puts_flows_on_the_path(path: Path):
    assert path.stem == "__init__" or path.stem not in {*sys.stdlib_module_names, *packages_distributions()}


@pytest.mark.parametrize("path", FLOW_FILES, ids=lambda path: path.name)
def test_no_flow_file_postpones_annotations(path: Path):
    # Prefect cannot resolve them when it serves the flow
    assert "from __future__ import annotations" not in path.read_text()


def test_the_library_never_imports_prefect():
    code = "import sys, pixscribe.run; sys.exit('prefect' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_imports_go_one_way():
    for path in (ROOT / "pixscribe").rglob("*.py"):
        text = path.read_text()
        assert not any(f"{word} {package}" in text for word in ("import", "from") for package in ("flows", "tasks"))
    for path in (ROOT / "tasks").glob("*.py"):
        assert "flows" not in path.read_text()
