"""Run by the Python of Label Studio's SDK: what that makes of an export, as JSON on stdout.

labelstudio_reader.py DIR SCRATCH
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

root, scratch = Path(sys.argv[1]), Path(sys.argv[2])
os.environ["LOCAL_FILES_DOCUMENT_ROOT"] = str(root)

from label_studio_sdk.converter import Converter  # noqa: E402
from label_studio_sdk.label_interface import LabelInterface  # noqa: E402


def main() -> None:
    config = (root / "config.xml").read_text(encoding="utf-8")
    tasks = json.loads((root / "tasks.json").read_text(encoding="utf-8"))
    interface = LabelInterface(config)
    interface.validate()
    print(
        json.dumps(
            {
                "labels": {control.name: list(control.labels or []) for control in interface.controls},
                "errors": [error for task in tasks for error in _errors(interface, task)],
                "coco": _convert(config, tasks),
            }
        )
    )


def _errors(interface: Any, task: dict[str, Any]) -> list[str]:
    errors = [] if interface.validate_task({"data": task["data"]}) else [f"the data of task {task['id']}"]
    return errors + [
        error
        for prediction in task["predictions"]
        for error in interface.validate_prediction(prediction, return_errors=True)
    ]


def _convert(config: str, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """As when a person has accepted every prediction and exports them as COCO."""
    accepted = [{**task, "annotations": [{"id": 1, **each} for each in task.pop("predictions")]} for task in tasks]
    source = scratch / "accepted.json"
    source.write_text(json.dumps(accepted), encoding="utf-8")
    converter = Converter(config=config, project_dir=str(root), download_resources=False)
    converter.convert(str(source), str(scratch / "coco"), "COCO", is_dir=False)
    coco: dict[str, Any] = json.loads((scratch / "coco/result.json").read_text(encoding="utf-8"))
    for image in coco["images"]:
        image["file_name"] = os.path.relpath(scratch / "coco" / image["file_name"], root)
    return coco


main()
