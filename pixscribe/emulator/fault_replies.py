"""Faults that take the place of an answer."""

import json
from collections.abc import Callable
from dataclasses import replace

from pixscribe.emulator.fault_table import enter
from pixscribe.emulator.replies import (
    FOREVER_S,
    HTML,
    INVALID_IMAGE,
    PER_DAY,
    PER_MINUTE,
    Reply,
    bad_key,
    file_gone_message,
    file_inactive_message,
    interactions_error,
    json_reply,
    quota_exceeded,
    rpc_error,
)
from pixscribe.emulator.request import Asked

REPLIES: dict[str, Callable[[Asked], Reply]] = {}


# --- quota


@enter(REPLIES, "429")
def _quota(asked: Asked) -> Reply:
    """429 with QuotaFailure, Help and RetryInfo, per minute."""
    return quota_exceeded(PER_MINUTE, 1000, asked.model, 1.5)


@enter(REPLIES, "429_bare")
def _quota_bare(asked: Asked) -> Reply:
    """429 without any details."""
    return rpc_error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")


@enter(REPLIES, "429_text")
def _quota_text(asked: Asked) -> Reply:
    """429 whose delay stands in the text only."""
    message = "You exceeded your current quota, please check your plan and billing details. Please retry in 1.5s."
    return rpc_error(429, "RESOURCE_EXHAUSTED", message)


@enter(REPLIES, "429_interactions")
def _quota_interactions(asked: Asked) -> Reply:
    """429 in the form of Interactions, code rate_limit_exceeded."""
    return interactions_error(429, "rate_limit_exceeded", "Rate limit exceeded. Please try again later.")


@enter(REPLIES, "429_daily")
def _quota_daily(asked: Asked) -> Reply:
    """429 for the day, with a RetryInfo of 10 s that is not to be believed."""
    return quota_exceeded(PER_DAY, 20, asked.model, 10)


@enter(REPLIES, "429_list")
def _quota_list(asked: Asked) -> Reply:
    """429 whose body is an array."""
    return json_reply([json.loads(_quota(asked).body)], 429)


@enter(REPLIES, "429_huge")
def _quota_huge(asked: Asked) -> Reply:
    """429 per minute, with a RetryInfo of 292 years."""
    return quota_exceeded(PER_MINUTE, 1000, asked.model, FOREVER_S)


@enter(REPLIES, "429_retry_after")
def _quota_retry_after(asked: Asked) -> Reply:
    """429 in the form of Interactions, with the header Retry-After: 2."""
    return replace(_quota_interactions(asked), headers={"Retry-After": "2"})


@enter(REPLIES, "429_zero")
def _quota_zero(asked: Asked) -> Reply:
    """429 for a model that is not in the tier: a quota of 0 for the day."""
    return quota_exceeded(PER_DAY, 0, asked.model, 10)


@enter(REPLIES, "429_zero_unsaid")
def _quota_zero_unsaid(asked: Asked) -> Reply:
    """429 for a model that is not in the tier, told by the text only: JSON of a proto drops a quotaValue of 0."""
    body = json.loads(_quota_zero(asked).body)
    del body["error"]["details"][0]["violations"][0]["quotaValue"]
    return json_reply(body, 429)


# --- server and network


@enter(REPLIES, "500")
def _internal(asked: Asked) -> Reply:
    """500 internal error."""
    return interactions_error(500, "api_error", "An internal error has occurred.")


@enter(REPLIES, "502_html")
def _bad_gateway(asked: Asked) -> Reply:
    """502 with a page of HTML."""
    return Reply(502, b"<html><title>502 Bad Gateway</title><h1>502. That is an error.</h1></html>", HTML)


@enter(REPLIES, "503")
def _overloaded(asked: Asked) -> Reply:
    """503 overloaded."""
    return rpc_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")


@enter(REPLIES, "504")
def _deadline(asked: Asked) -> Reply:
    """504 deadline exceeded."""
    return interactions_error(504, "deadline_exceeded", "Deadline expired before the operation could complete.")


@enter(REPLIES, "408")
def _request_timeout(asked: Asked) -> Reply:
    """408 request timeout."""
    return interactions_error(408, "request_timeout", "The request timed out.")


@enter(REPLIES, "timeout")
def _never(asked: Asked) -> Reply:
    """No answer until the client leaves."""
    return Reply(0, delivery="never")


@enter(REPLIES, "reset")
def _reset(asked: Asked) -> Reply:
    """The connection is reset instead of an answer."""
    return Reply(0, delivery="reset")


@enter(REPLIES, "cut")
def _cut(asked: Asked) -> Reply:
    """The body ends before its Content-Length."""
    body = {"status": "completed", "steps": [{"type": "model_output", "content": [{"type": "text", "text": "[]"}]}]}
    return Reply(200, json_reply(body).body, delivery="cut")


@enter(REPLIES, "html_200")
def _portal(asked: Asked) -> Reply:
    """200 with a page of HTML, as captive portals answer."""
    return Reply(200, b"<html><title>Welcome</title>Please log in to the network.</html>", HTML)


@enter(REPLIES, "not_json_200")
def _not_json(asked: Asked) -> Reply:
    """200 called JSON that is none."""
    return Reply(200, b"OK, here is your answer")


@enter(REPLIES, "huge_answer")
def _huge(asked: Asked) -> Reply:
    """200 with 40 MB of text."""
    output = {"type": "model_output", "content": [{"type": "text", "text": "very " * 8_000_000}]}
    return json_reply({"model": asked.model, "status": "completed", "steps": [output]})


# --- refusals


@enter(REPLIES, "blocked")
def _blocked(asked: Asked) -> Reply:
    """400 content_blocked."""
    return interactions_error(400, "content_blocked", "The request was blocked by the content policy.")


@enter(REPLIES, "bad_key")
def _bad_key(asked: Asked) -> Reply:
    """400 API_KEY_INVALID, as if the key had just been revoked."""
    return bad_key()


@enter(REPLIES, "key_revoked_403")
def _revoked(asked: Asked) -> Reply:
    """403 for a key reported as leaked."""
    message = "Your API key was reported as leaked. Please use another API key."
    return rpc_error(403, "PERMISSION_DENIED", message)


@enter(REPLIES, "file_gone_403")
def _file_gone(asked: Asked) -> Reply:
    """403 for the question's file, as if it had expired."""
    return interactions_error(403, "permission_denied", file_gone_message(_file_id(asked)))


@enter(REPLIES, "not_active_400")
def _not_active(asked: Asked) -> Reply:
    """400 for the question's file, as if it were still processed."""
    return interactions_error(400, "failed_precondition", file_inactive_message(_file_id(asked)))


@enter(REPLIES, "invalid_image_400")
def _invalid_image(asked: Asked) -> Reply:
    """400 for the image."""
    return interactions_error(400, "invalid_request", INVALID_IMAGE)


def _file_id(asked: Asked) -> str:
    uris = [image.uri for image in asked.images if image.uri]
    return uris[0].rpartition("/")[2] if uris else "unknown"
