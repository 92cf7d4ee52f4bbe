"""Chat completions as OpenAI words them, for tools that speak nothing else: generateContent in other clothes.

The key may come as a bearer token here, and errors come in an array (n4ze3m/page-assist#406). Whether the service
refuses fields that it does not know is not documented; the emulator does. Source: Gemini API docs, "OpenAI
compatibility".
"""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pixscribe.emulator.call import Call
from pixscribe.emulator.checks import Check, absent, boolean, each, one_of, record, string, tagged
from pixscribe.emulator.generate import as_rpc
from pixscribe.emulator.generate_request import understand
from pixscribe.emulator.interactions import Dialect, Interactions, Spent
from pixscribe.emulator.replies import Refused, Reply, invalid
from pixscribe.emulator.request import Asked, parse_object
from pixscribe.emulator.speech import Draft


class Chat:
    """The same model as that of `interactions`."""

    def __init__(self, interactions: Interactions) -> None:
        self._interactions = interactions
        self._serial = 0
        self._dialect = Dialect(_read, self._render)

    async def completions(self, call: Call) -> Reply:
        try:
            return _in_array(await self._interactions.answer(replace(call, takes_bearer=True), self._dialect))
        except Refused as refused:
            raise Refused(_in_array(refused.reply)) from refused

    def _render(self, asked: Asked, draft: Draft, spent: Spent) -> dict[str, Any]:
        self._serial += 1
        prompt_tokens = asked.text_tokens + asked.image_tokens
        message = {"role": "assistant"} | ({} if draft.text is None else {"content": draft.text})
        choice = {"index": 0, "message": message, "finish_reason": _FINISHES.get(draft.status, draft.status)}
        return {
            "id": f"emulated{self._serial:012d}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": [choice] if draft.has_steps else [],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": spent.output_tokens,
                "total_tokens": prompt_tokens + spent.output_tokens + spent.thought_tokens,
            },
        }


def _in_array(reply: Reply) -> Reply:
    reply = as_rpc(reply)
    if reply.status < 400 or not reply.body.startswith(b"{"):
        return reply
    return replace(reply, body=b"[" + reply.body + b"\n]\n")


def _read(raw: bytes, call: Call) -> Asked:
    body = parse_object(raw)
    _BODY("", body)
    return understand(_as_generate(body), body["model"].removeprefix("models/"), call.version)


def _as_generate(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same question in the words of generateContent."""
    said = [message for message in body["messages"] if message["role"] != "system"]
    ruled = [part for message in body["messages"] if message["role"] == "system" for part in _parts(message)]
    contents = [
        {"role": "model" if message["role"] == "assistant" else "user", "parts": _parts(message)} for message in said
    ]
    config = {name: body[key] for key, name in _RENAMED.items() if body.get(key) is not None}
    if (stop := body.get("stop")) is not None:
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    if effort := body.get("reasoning_effort"):
        config["thinkingConfig"] = {"thinkingLevel": "minimal" if effort == "none" else effort}
    config |= _format(body.get("response_format") or {})
    question: dict[str, Any] = {"contents": contents, "generationConfig": config}
    return question | ({"systemInstruction": {"parts": ruled}} if ruled else {})


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"text": content}] if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"text": part["text"]}
    found = re.match(r"data:([\w/.+-]+);base64,", part["image_url"]["url"])
    if found is None:
        raise invalid("Invalid value at 'image_url.url': the emulator takes data URLs in base64 only.")
    return {"inlineData": {"mimeType": found[1], "data": part["image_url"]["url"][found.end() :]}}


def _format(given: Mapping[str, Any]) -> dict[str, Any]:
    match given.get("type", "text"):
        case "json_schema":
            return {"responseMimeType": "application/json", "responseJsonSchema": given["json_schema"]["schema"]}
        case "json_object":
            return {"responseMimeType": "application/json"}
    return {}


def _anything(path: str, value: Any) -> None:
    """Checked as what it is turned into."""


def _content(path: str, value: Any) -> None:
    (string if isinstance(value, str) else each(_PART, least=1))(path, value)


_FINISHES = {"completed": "stop", "incomplete": "length", "failed": "content_filter"}
_RENAMED = {
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "seed": "seed",
    "n": "candidateCount",
}
_URL = record({"url": string, "detail": one_of("auto", "low", "high")}, required=["url"])
_PART = tagged(
    {
        "text": record({"type": string, "text": string}, required=["text"]),
        "image_url": record({"type": string, "image_url": _URL}, required=["image_url"]),
    }
)
_MESSAGE = record({"role": one_of("system", "user", "assistant"), "content": _content}, required=["role", "content"])
_NAMED_SCHEMA = record(
    {"name": string, "description": string, "schema": _anything, "strict": boolean}, required=["name", "schema"]
)
_FORMAT = tagged(
    {
        "text": record({"type": string}),
        "json_object": record({"type": string}),
        "json_schema": record({"type": string, "json_schema": _NAMED_SCHEMA}, required=["json_schema"]),
    }
)
_FIELDS: dict[str, Check] = {
    "model": string,
    "messages": each(_MESSAGE, least=1),
    "response_format": _FORMAT,
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high"),
    "stop": _anything,
    **dict.fromkeys(_RENAMED, _anything),
    **{name: absent(f"'{name}'") for name in ("stream", "tools", "tool_choice", "modalities", "audio")},
}
_BODY = record(_FIELDS, required=["model", "messages"])
