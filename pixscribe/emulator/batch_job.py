"""A batch, and how the API words it: as an operation with the batch in its metadata."""

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from pixscribe.emulator.batch_request import Lines
from pixscribe.emulator.call import Caller
from pixscribe.emulator.fault_batches import End, Fate, Line
from pixscribe.emulator.files import StoredFile, timestamp
from pixscribe.emulator.spool import Spool

State = End | Literal["PENDING", "RUNNING"]

_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main"
_ERRORS = {
    "FAILED": {"code": 13, "message": "An internal error has occurred."},
    "CANCELLED": {"code": 1, "message": "The operation was cancelled."},
    "EXPIRED": {"code": 4, "message": "The batch expired before it was completed."},
}


@dataclass(slots=True)
class Job:
    """`lines` is None once the job is over, `output` once it is in a file. `file` is what the requests came in."""

    batch_id: str
    caller: Caller
    version: str
    model: str
    display_name: str
    priority: str | None
    file: StoredFile | None
    lines: Lines | None
    tokens: int
    fate: Fate
    origin: str
    serial: int
    created_s: float
    updated_s: float
    request_count: int = 0
    state: State = "PENDING"
    ended_s: float | None = None
    error: dict[str, Any] | None = None
    answered: int = 0
    failed: int = 0
    output: Spool = field(default_factory=Spool)
    output_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    output_file: StoredFile | None = None
    was_looked_at: bool = False
    is_deleted: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.ended_s is not None

    def write(self, line: Line) -> None:
        data = orjson.dumps(line) + b"\n"
        self.output.write(data)
        self.output_hash.update(data)

    def end(self, state: End, now_s: float, error: dict[str, Any] | None = None) -> None:
        """`error` where the usual one of the state does not tell what happened. There is no output but of success."""
        self.state, self.ended_s, self.updated_s = state, now_s, now_s
        self.error = error or _ERRORS.get(state)
        self.lines = None
        if state != "SUCCEEDED":
            self.output = Spool()

    def to_operation(self, *, in_list: bool = False) -> dict[str, Any]:
        """As the API words it. Inline responses are left out of a list, as the service does."""
        operation: dict[str, Any] = {"name": f"batches/{self.batch_id}", "metadata": self._metadata()}
        if not self.is_over:
            return operation
        operation["done"] = True
        if self.error is not None:
            return {**operation, "error": self.error}
        output = self._output(in_list=in_list)
        if output:
            operation["metadata"]["output"] = output
        return {**operation, "response": {"@type": f"{_TYPE}.GenerateContentBatchOutput", **output}}

    def _metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "@type": f"{_TYPE}.GenerateContentBatch",
            "model": f"models/{self.model}",
            "displayName": self.display_name,
            "createTime": timestamp(self.created_s),
            "updateTime": timestamp(self.updated_s),
            "batchStats": self._stats(),
            "state": f"BATCH_STATE_{self.state}",
            "name": f"batches/{self.batch_id}",
        }
        if self.file is not None:
            metadata["inputConfig"] = {"fileName": f"files/{self.file.file_id}"}
        if self.priority is not None:
            metadata["priority"] = self.priority
        if self.ended_s is not None:
            metadata["endTime"] = timestamp(self.ended_s)
        return metadata

    def _stats(self) -> dict[str, str]:
        """As JSON of a proto: an int64 is a string, and what is 0 is dropped."""
        counts = {
            "requestCount": self.request_count,
            "successfulRequestCount": self.answered,
            "failedRequestCount": self.failed,
            "pendingRequestCount": self.request_count - self.answered - self.failed,
        }
        return {name: str(count) for name, count in counts.items() if count}

    def _output(self, *, in_list: bool) -> dict[str, Any]:
        if self.output_file is not None:
            return {"responsesFile": f"files/{self.output_file.file_id}"}
        if in_list:
            return {}
        lines = self.output.read(0, self.output.size_bytes).splitlines()
        return {"inlinedResponses": {"inlinedResponses": [orjson.Fragment(line) for line in lines]}}
