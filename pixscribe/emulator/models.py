"""The Models API: one model by its name."""

import re

from pixscribe.emulator.call import Call
from pixscribe.emulator.fault_models import MODEL_REPLIES
from pixscribe.emulator.faults import FaultSource
from pixscribe.emulator.replies import Refused, Reply, json_reply, model_missing
from pixscribe.emulator.request import MAX_OUTPUT_TOKENS, is_offered

_INPUT_TOKEN_LIMIT = 1_048_576


class Models:
    def __init__(self, faults: FaultSource) -> None:
        self._faults = faults

    async def get(self, call: Call) -> Reply:
        """The same models are there as for a question."""
        call.project()
        if not is_offered(call.target, call.version):
            raise Refused(model_missing(call.target, call.version))
        fault = self._faults.next("model")
        return json_reply(_describe(call.target)) if fault is None else MODEL_REPLIES[fault](call)


def _describe(model: str) -> dict[str, object]:
    number = re.search(r"\d+(?:\.\d+)?", model)
    return {
        "name": f"models/{model}",
        "version": number[0] if number else "latest",
        "displayName": model.replace("-", " ").title(),
        "inputTokenLimit": _INPUT_TOKEN_LIMIT,
        "outputTokenLimit": MAX_OUTPUT_TOKENS,
        "supportedGenerationMethods": ["generateContent", "countTokens", "batchGenerateContent"],
    }
