"""generateContent: the older of the two calls that ask a model, and the one that batches are made of.

What is asked, seen and counted is what it is for Interactions; only the words on the wire are others.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from pixscribe.emulator.books import Question
from pixscribe.emulator.call import Call, Caller
from pixscribe.emulator.generate_request import read_generate
from pixscribe.emulator.interactions import Dialect, Interactions, Spent
from pixscribe.emulator.replies import Refused, Reply, json_reply, rpc_error
from pixscribe.emulator.request import Asked
from pixscribe.emulator.speech import Draft


class Generate:
    """The same model as that of `interactions`: one quota, one row of faults, one set of books."""

    def __init__(self, interactions: Interactions) -> None:
        self._interactions = interactions
        self._serial = 0
        self._dialect = Dialect(_read, self._render, _REPLIES)

    async def content(self, call: Call) -> Reply:
        try:
            return as_rpc(await self._interactions.answer(call, self._dialect))
        except Refused as refused:
            raise Refused(as_rpc(refused.reply)) from refused

    async def line(self, asked: Asked, caller: Caller, question: Question) -> Reply:
        """The same for a request of a batch: outside of the quotas, and without delay. Raises nothing."""
        try:
            return as_rpc(await self._interactions.ask(asked, caller, question, self._dialect, now=False))
        except Refused as refused:
            return as_rpc(refused.reply)

    def _render(self, asked: Asked, draft: Draft, spent: Spent) -> dict[str, Any]:
        self._serial += 1
        answer: dict[str, Any] = {
            "candidates": [_candidate(draft)],
            "usageMetadata": _usage(asked, spent),
            "modelVersion": asked.model,
            "responseId": f"emulated{self._serial:012d}",
        }
        if not draft.has_steps:
            del answer["candidates"]
        return answer


def as_rpc(reply: Reply) -> Reply:
    """An error in the form of Interactions turned into that of google.rpc; anything else as it is."""
    if reply.status < 400 or not reply.content_type.startswith("application/json"):
        return reply
    error = orjson.loads(reply.body)
    if isinstance(error, list) or not isinstance(error["error"]["code"], str):
        return reply
    code, message = error["error"]["code"], error["error"]["message"]
    status = "FAILED_PRECONDITION" if code == "failed_precondition" else _STATUSES.get(reply.status, "UNKNOWN")
    return replace(reply, body=rpc_error(reply.status, status, message).body)


def _read(raw: bytes, call: Call) -> Asked:
    return read_generate(raw, call.target, call.version)


def _candidate(draft: Draft) -> dict[str, Any]:
    finish = _FINISHES.get(draft.status, draft.status.upper())
    content: dict[str, Any] = {"role": "model"}
    if draft.text is not None:
        content["parts"] = [{"text": draft.text, "thoughtSignature": _SIGNATURE}]
    elif finish == "STOP":
        content["parts"] = [{"text": "", "thoughtSignature": _SIGNATURE}]
    candidate = {"index": 0, "finishReason": finish}
    return candidate if finish == "SAFETY" else {**candidate, "content": content}


def _usage(asked: Asked, spent: Spent) -> dict[str, Any]:
    """As JSON of a proto, which drops what is 0."""
    prompt_tokens = asked.text_tokens + asked.image_tokens
    counts = {
        "promptTokenCount": prompt_tokens,
        "candidatesTokenCount": spent.output_tokens,
        "thoughtsTokenCount": spent.thought_tokens,
        "totalTokenCount": prompt_tokens + spent.output_tokens + spent.thought_tokens,
    }
    modalities = {"TEXT": asked.text_tokens, "IMAGE": asked.image_tokens}
    details = [{"modality": name, "tokenCount": count} for name, count in modalities.items() if count]
    return {**{name: count for name, count in counts.items() if count}, "promptTokensDetails": details}


def _blocked(asked: Asked) -> Reply:
    """200 without candidates: here a prompt that is blocked is no error."""
    usage = {"promptTokenCount": asked.text_tokens + asked.image_tokens}
    feedback = {"blockReason": "PROHIBITED_CONTENT"}
    return json_reply({"promptFeedback": feedback, "usageMetadata": usage, "modelVersion": asked.model})


def _huge(asked: Asked) -> Reply:
    """200 with 40 MB of text."""
    content = {"role": "model", "parts": [{"text": "very " * 8_000_000}]}
    return json_reply({"candidates": [{"index": 0, "finishReason": "STOP", "content": content}]})


_REPLIES: Mapping[str, Callable[[Asked], Reply]] = {"blocked": _blocked, "huge_answer": _huge}
_SIGNATURE = base64.b64encode(b"emulated thought").decode()
_FINISHES = {"completed": "STOP", "incomplete": "MAX_TOKENS", "failed": "SAFETY"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
