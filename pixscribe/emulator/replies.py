"""What goes back over the wire: an answer, or an error in one of the API's two forms.

Interactions say `{"error": {"code": "<snake_case>", "message": ...}}`; the Files API and the front end (keys, quotas)
say `{"error": {"code": <int>, "message": ..., "status": ..., "details": [...]}}`. Source: Gemini API docs, "Errors".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from pixscribe.emulator.spool import Spool

JSON = "application/json; charset=UTF-8"
HTML = "text/html; charset=UTF-8"
INVALID_ARGUMENT = "Request contains an invalid argument."
INVALID_IMAGE = "Provided image is not valid."
STORAGE_BYTES = 20 * 1024**3
"""Of a project, in the Files API."""
FOREVER_S = 2**63 - 1
"""The longest delay that a RetryInfo can say."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. `delivery` says how far it gets: `cut` stops halfway, `reset` and `never` send nothing.

    `text` is a body too long for memory, in the place of `body`.
    """

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery: Literal["whole", "cut", "reset", "never"] = "whole"
    text: Spool | None = None


class Refused(Exception):
    """The request is not served; `reply` says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body.decode(errors="replace"))
        self.reply = reply

    @property
    def message(self) -> str:
        """What the error says; only of one that is JSON."""
        return str(orjson.loads(self.reply.body)["error"]["message"])


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, orjson.dumps(value), headers=headers or {})


def interactions_error(status: int, code: str, message: str) -> Reply:
    return json_reply({"error": {"message": message, "code": code}}, status)


def rpc_error(http_status: int, status: str, message: str, details: Sequence[Mapping[str, Any]] = ()) -> Reply:
    error: dict[str, Any] = {"code": http_status, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return json_reply({"error": error}, http_status)


def invalid(message: str, code: str = "invalid_request") -> Refused:
    """The 400 of Interactions."""
    return Refused(interactions_error(400, code, message))


def invalid_rpc(message: str) -> Refused:
    """The 400 of Files."""
    return Refused(rpc_error(400, "INVALID_ARGUMENT", message))


def not_emulated(what: str) -> Refused:
    """For what Gemini does and this server does not: louder than a wrong answer."""
    return Refused(interactions_error(501, "unimplemented", f"The emulator does not offer {what}."))


def file_gone_message(file_id: str) -> str:
    return f"You do not have permission to access the File {file_id} or it may not exist."


def file_inactive_message(file_id: str) -> str:
    return f"The File {file_id} is not in an ACTIVE state and usage is not allowed."


def bad_key() -> Reply:
    message = "API key not valid. Please pass a valid API key."
    info = {
        "@type": rpc_type("ErrorInfo"),
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    localized = {"@type": rpc_type("LocalizedMessage"), "locale": "en-US", "message": message}
    return rpc_error(400, "INVALID_ARGUMENT", message, [info, localized])


def quota_exceeded(quota_id: str, limit: float, model: str, retry_delay_s: float) -> Reply:
    """429 with the three details of a live one. Per minute or per day is told by `quota_id` only."""
    delay = f"{retry_delay_s}s" if isinstance(retry_delay_s, int) else f"{retry_delay_s:.9g}s"
    metric = f"generativelanguage.googleapis.com/{_METRICS.get(quota_id, 'generate_content_requests')}"
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
        f"* Quota exceeded for metric: {metric}, limit: {limit:g}, model: {model}\n"
        f"Please retry in {delay}."
    )
    violation = {
        "quotaMetric": metric,
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": f"{limit:g}",
    }
    details: list[Mapping[str, Any]] = [
        {"@type": rpc_type("QuotaFailure"), "violations": [violation]},
        {"@type": rpc_type("Help"), "links": [_HELP]},
        retry_info(delay),
    ]
    return rpc_error(429, "RESOURCE_EXHAUSTED", message, details)


def batch_quota_exceeded() -> Reply:
    """429 with the one detail of a live one (langchain4j/langchain4j#3942): nothing says how long to wait."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: "
        "https://ai.dev/rate-limit. "
    )
    return rpc_error(429, "RESOURCE_EXHAUSTED", message, [{"@type": rpc_type("Help"), "links": [_HELP]}])


def storage_full(limit_bytes: int) -> Reply:
    """429 with a delay of 292 years: no waiting helps, only deleting."""
    message = f"You exceeded your current quota: file storage, limit: {limit_bytes} bytes."
    return rpc_error(429, "RESOURCE_EXHAUSTED", message, [retry_info(f"{FOREVER_S}s")])


def session_missing() -> Reply:
    return rpc_error(404, "NOT_FOUND", "Upload session was not found.")


def model_missing(model: str, version: str) -> Reply:
    """The 404 of Models; that of Interactions is worded otherwise."""
    message = f"models/{model} is not found for API version {version}, or is not supported for generateContent."
    return rpc_error(404, "NOT_FOUND", message)


def rpc_status(reply: Reply) -> dict[str, Any]:
    """The google.rpc.Status of an error, whose code is gRPC's number; one without sense is an internal one."""
    try:
        body = orjson.loads(reply.body)
        error = (body[0] if isinstance(body, list) else body)["error"]
        return {"code": _GRPC_CODES.get(error.get("status"), 2), "message": error["message"]}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {"code": 13, "message": "An internal error has occurred."}


def retry_info(delay: str) -> dict[str, Any]:
    return {"@type": rpc_type("RetryInfo"), "retryDelay": delay}


def rpc_type(name: str) -> str:
    return f"type.googleapis.com/google.rpc.{name}"


PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel"
PER_DAY = "GenerateRequestsPerDayPerProjectPerModel"
TOKENS_PER_MINUTE = "GenerateContentPaidTierInputTokensPerModelPerMinute"
_GRPC_CODES = {
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
_METRICS = {TOKENS_PER_MINUTE: "generate_content_paid_tier_input_token_count"}
_HELP = {
    "description": "Learn more about Gemini API quotas",
    "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
}
