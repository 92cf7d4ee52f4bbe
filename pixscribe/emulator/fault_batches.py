"""Faults of batches: of a job as a whole, drawn when it is created, and of its single requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from pixscribe.emulator.fault_table import enter
from pixscribe.emulator.replies import INVALID_ARGUMENT, Reply, batch_quota_exceeded, file_gone_message, rpc_error

Line = dict[str, Any]
End = Literal["SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "GONE"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a job; by default it succeeds.

    `answered_share` of its requests are answered, and billed, before it ends in `end`: what it gives out is all of
    them (SUCCEEDED) or nothing. GONE: as if somebody had deleted it.
    """

    refusal: Reply | None = None
    """There is no job, and this is the answer to its creation."""
    answer_is_lost: bool = False
    """There is a job, and the connection breaks before its creation is answered."""
    starts: bool = True
    answered_share: float = 1.0
    end: End = "SUCCEEDED"
    heeds_cancel: bool = True
    first_look: Reply | None = None
    first_download: Reply | None = None
    """One of status 200 says by its `delivery` how far the real file gets."""


BATCH_FATES: dict[str, Callable[[], Fate]] = {}
BATCH_LINE_ERRORS: dict[str, Callable[[], Reply]] = {}
"""In the place of an answer, which is not billed then; HTTP's form of what the line says in gRPC's."""
BATCH_LINE_SPOILERS: dict[str, Callable[[Line, dict[str, Any]], list[Line]]] = {}
"""Called with the line and its request; what stands in the output in its place."""


# --- jobs


@enter(BATCH_FATES, "batch_429")
def _quota() -> Fate:
    """429 when the job is created, without a delay; there is no job."""
    return Fate(refusal=batch_quota_exceeded())


@enter(BATCH_FATES, "batch_503")
def _unavailable() -> Fate:
    """503 when the job is created; there is no job."""
    return Fate(refusal=rpc_error(503, "UNAVAILABLE", _UNAVAILABLE))


@enter(BATCH_FATES, "batch_lost_create")
def _lost_create() -> Fate:
    """The job is created, and the connection reset before the answer."""
    return Fate(answer_is_lost=True)


@enter(BATCH_FATES, "batch_stuck")
def _stuck() -> Fate:
    """The job is PENDING until it expires after 48 hours, with no request answered."""
    return Fate(starts=False)


@enter(BATCH_FATES, "batch_failed")
def _failed() -> Fate:
    """The job FAILED before the first request, with an internal error."""
    return Fate(answered_share=0.0, end="FAILED")


@enter(BATCH_FATES, "batch_expired")
def _expired() -> Fate:
    """The job EXPIRED with half of the requests answered and billed, and gives none of them out."""
    return Fate(answered_share=0.5, end="EXPIRED")


@enter(BATCH_FATES, "batch_cancelled")
def _cancelled() -> Fate:
    """Somebody else cancels the job when half of the requests are answered and billed; it gives none of them out."""
    return Fate(answered_share=0.5, end="CANCELLED")


@enter(BATCH_FATES, "batch_gone")
def _gone() -> Fate:
    """Somebody else deletes the job when half of the requests are answered and billed: 404 from then on."""
    return Fate(answered_share=0.5, end="GONE")


@enter(BATCH_FATES, "batch_cancel_ignored")
def _cancel_ignored() -> Fate:
    """To cancel the job is answered well, and has no effect."""
    return Fate(heeds_cancel=False)


@enter(BATCH_FATES, "batch_look_503")
def _look_503() -> Fate:
    """503 for the first look at the job."""
    return Fate(first_look=rpc_error(503, "UNAVAILABLE", _UNAVAILABLE))


@enter(BATCH_FATES, "batch_file_503")
def _file_503() -> Fate:
    """503 for the first download of the job's output."""
    return Fate(first_download=rpc_error(503, "UNAVAILABLE", _UNAVAILABLE))


@enter(BATCH_FATES, "batch_file_cut")
def _file_cut() -> Fate:
    """The first download of the job's output breaks off halfway."""
    return Fate(first_download=Reply(200, delivery="cut"))


@enter(BATCH_FATES, "batch_file_403")
def _file_403() -> Fate:
    """403 for the first download of the job's output, as if it had expired."""
    return Fate(first_download=rpc_error(403, "PERMISSION_DENIED", file_gone_message("batch")))


# --- requests


@enter(BATCH_LINE_ERRORS, "batch_line_500")
def _line_internal() -> Reply:
    """The request has an internal error, number 13, in the place of its answer."""
    return rpc_error(500, "INTERNAL", "An internal error has occurred.")


@enter(BATCH_LINE_ERRORS, "batch_line_503")
def _line_overloaded() -> Reply:
    """The request has the error 14, overloaded, in the place of its answer."""
    return rpc_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")


@enter(BATCH_LINE_ERRORS, "batch_line_429")
def _line_quota() -> Reply:
    """The request has the error 8, for the quota, in the place of its answer."""
    return rpc_error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")


@enter(BATCH_LINE_ERRORS, "batch_line_400")
def _line_invalid() -> Reply:
    """The request has the error 3, without a hint, in the place of its answer."""
    return rpc_error(400, "INVALID_ARGUMENT", INVALID_ARGUMENT)


@enter(BATCH_LINE_SPOILERS, "batch_line_lost")
def _lost(line: Line, request: dict[str, Any]) -> list[Line]:
    """The answer is billed and not in the output."""
    return []


@enter(BATCH_LINE_SPOILERS, "batch_line_twice")
def _twice(line: Line, request: dict[str, Any]) -> list[Line]:
    """The answer is in the output twice."""
    return [line, line]


@enter(BATCH_LINE_SPOILERS, "batch_line_bare")
def _bare(line: Line, request: dict[str, Any]) -> list[Line]:
    """The line has neither an answer nor an error."""
    return [{name: value for name, value in line.items() if name in ("key", "metadata")}]


@enter(BATCH_LINE_SPOILERS, "batch_line_json_schema")
def _hollow(line: Line, request: dict[str, Any]) -> list[Line]:
    """The answer has the form of its responseJsonSchema and nothing in it; with a responseSchema it is good.

    So crmne/ruby_llm#894: 0 of 502 answers of batches were right, and all of them outside of batches.
    """
    config = request.get("generationConfig") or request.get("generation_config") or {}
    schema = config.get("responseJsonSchema") or config.get("response_json_schema")
    for candidate in line.get("response", {}).get("candidates", ()):
        for part in candidate.get("content", {}).get("parts", ()) if schema else ():
            part["text"] = orjson.dumps(_empty(schema)).decode()
    return [line]


def _empty(schema: Any) -> Any:
    kind = schema.get("type")
    if kind == "object":
        return {name: _empty(child) for name, child in schema.get("properties", {}).items()}
    return {"array": [], "string": "", "integer": 0, "number": 0, "boolean": False}.get(str(kind))


_UNAVAILABLE = "The service is currently unavailable."
