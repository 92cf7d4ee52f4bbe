"""What a question costs: tokens by the documented rules, USD by a dated table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pixscribe.types import Usage

PRICES_AS_OF = "2026-10-05"
"""The date of the table; Google changes prices without notice."""

IMAGE_TOKENS: Mapping[str | None, int] = {None: 1120, "low": 280, "medium": 560, "high": 1120, "ultra_high": 2240}
"""Upper bounds for one image on Gemini 3, by `model.resolution`."""

TIER_FACTORS = {"standard": 1.0, "flex": 0.5, "priority": 2.0}
"""Priority is 75 to 100 % dearer; the dearer end is taken."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens; thought tokens count as output."""

    input_usd: float
    output_usd: float

    def cost_usd(self, usage: Usage, service_tier: str = "standard") -> float:
        """What `usage` costs on that tier."""
        output_tokens = usage.output_tokens + usage.thought_tokens
        dollars = usage.input_tokens * self.input_usd + output_tokens * self.output_usd
        return dollars / 1e6 * TIER_FACTORS[service_tier]


PRICES: Mapping[str, Price] = {
    "gemini-3.8-flash": Price(0.75, 3.75),
    "gemini-3.6-flash": Price(0.75, 3.75),
    "gemini-3.5-flash": Price(1.50, 9.00),
    "gemini-3.5-flash-lite": Price(0.30, 2.50),
    "gemini-3.1-flash-lite": Price(0.25, 1.50),
    "gemini-3-flash-preview": Price(0.50, 3.00),
    "gemini-3.1-pro-preview": Price(2.00, 12.00),
    "gemini-2.5-pro": Price(1.25, 10.00),
    "gemini-2.5-flash": Price(0.30, 2.50),
    "gemini-2.5-flash-lite": Price(0.10, 0.40),
}
"""Standard tier, as of PRICES_AS_OF. A model that is missing here is run without a price, and never with a budget."""


def estimate_input_tokens(text: str, schema: Mapping[str, Any], resolution: str | None) -> int:
    """Input tokens of a question about one image, before it is asked: three bytes a token, which is on the safe side in
    any script, and the documented bound for the image."""
    return (len(text.encode()) + len(orjson.dumps(schema))) // 3 + 1 + IMAGE_TOKENS[resolution]
