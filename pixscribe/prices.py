"""What a question costs: tokens by the documented rules, USD by a dated table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import orjson

from pixscribe.config import ModelConfig, ModelPrice, PricesConfig
from pixscribe.types import Kind, Size, Usage

PRICES_AS_OF = "2026-10-05"
"""The date of the table; Google changes prices without notice."""

IMAGE_TOKENS: Mapping[str | None, int] = {None: 1120, "low": 280, "medium": 560, "high": 1120, "ultra_high": 2240}
"""Upper bounds for one image on Gemini 3, by `model.resolution`."""
IMAGE_TOKENS_OF_2: Mapping[str, int] = {"low": 64, "medium": 256, "high": 2048, "ultra_high": 2048}
"""The same on Gemini 2.5, which pans and scans from high on; unset, it goes by the tiles of the image."""
TILE_TOKENS = 258
SMALL_SIDE_PX = 384
"""An image of Gemini 2 with both sides at most this long is one tile."""
MAX_TILES = 16
"""Of one image: about those of one that is five times as long as wide. The guide names no bound, and by its rule a line
of 20,000 x 10 px would have millions of tokens."""
CHARACTERS_PER_TOKEN = 4
"""Of text. See "Understand and count tokens", read 2026-11."""

OUTPUT_TOKENS: Mapping[Kind, int] = {"detect": 200, "segment": 1000, "caption": 60, "classify": 30, "ask": 100}
"""What an answer is taken to have before any was seen: six objects of 30 tokens, with an outline of a dozen points 150
each; two sentences; a few words. What is in the images changes it several times over."""
THOUGHT_TOKENS: Mapping[str | None, int] = {"minimal": 0, "low": 250, "medium": 1000, "high": 4000, None: 1000}
"""What a model is taken to think before each answer, by `model.thinking_level`."""

TIER_FACTORS: Mapping[str, float] = {"standard": 1.0, "flex": 0.5, "batch": 0.5, "priority": 2.0}
"""Priority is 75 to 100 % dearer; the dearer end is taken."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens; thought tokens count as output."""

    input_usd: float
    output_usd: float
    as_of: str = PRICES_AS_OF
    factors: Mapping[str, float] = field(default_factory=lambda: TIER_FACTORS)
    """What the tiers cost, as a multiple of standard."""

    def cost_usd(self, usage: Usage, service_tier: str = "standard") -> float:
        """What `usage` costs on that tier."""
        output_tokens = usage.output_tokens + usage.thought_tokens
        dollars = usage.input_tokens * self.input_usd + output_tokens * self.output_usd
        return dollars / 1e6 * self.factors[service_tier]


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
"""Standard tier, as of PRICES_AS_OF. A model that is missing here, and in the config's `prices`, is run without a
price, and never with a budget."""
ANNOUNCED: Mapping[str, tuple[date, Price]] = {
    "gemini-3.8-flash": (date(2027, 1, 1), Price(1.50, 7.50)),
    "gemini-3.6-flash": (date(2027, 1, 1), Price(1.50, 7.50)),
}
"""Prices that hold from a day on."""


def find_price(model: str, prices: PricesConfig, today: date | None = None) -> Price | None:
    """What the model costs: as the config says, else as the table says for `today`. None if neither knows it."""
    if (said := prices.models.get(model)) is not None:
        return _said_price(said, prices)
    since, announced = ANNOUNCED.get(model, (date.max, None))
    return announced if (today or datetime.now().astimezone().date()) >= since else PRICES.get(model)


def _said_price(said: ModelPrice, prices: PricesConfig) -> Price:
    factors = {"flex": said.flex_factor, "batch": said.batch_factor, "priority": said.priority_factor}
    return Price(said.input_usd, said.output_usd, str(prices.as_of), {"standard": 1.0, **factors})


def tier_of(model: ModelConfig) -> str:
    """Whose price a question of this config has: one of `TIER_FACTORS`."""
    return "batch" if model.mode == "batch" else model.service_tier


def estimate_input_tokens(text: str, schema: Mapping[str, Any], resolution: str | None) -> int:
    """The most input tokens that a question about one image is taken to have, before it is asked: three bytes a token,
    which is on the safe side in any script, and the documented bound for the image."""
    return (len(text.encode()) + len(orjson.dumps(schema))) // 3 + 1 + IMAGE_TOKENS[resolution]


def text_tokens(text: str) -> int:
    """What the words of a question are likely to have. The schema is not known to count."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def image_tokens(model: str, resolution: str | None, sent_wh: Size) -> int:
    """What an image that is sent in this size is likely to have.

    On Gemini 3, it goes by the resolution alone. On Gemini 2 without one, tiles have two thirds of the shorter side;
    where the guide does not say how that is rounded, up is taken. More than `MAX_TILES` are not counted. See "Image
    understanding", read 2026-11.
    """
    if not model.startswith("gemini-2"):
        return IMAGE_TOKENS[resolution]
    if resolution is not None:
        return IMAGE_TOKENS_OF_2[resolution]
    return TILE_TOKENS * (1 if max(sent_wh) <= SMALL_SIDE_PX else _tiles(*sent_wh))


def _tiles(width: int, height: int) -> int:
    unit_px = max(1, math.floor(min(width, height) / 1.5))
    return min(MAX_TILES, -(-width // unit_px) * -(-height // unit_px))
