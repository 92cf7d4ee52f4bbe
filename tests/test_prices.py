from datetime import date
from pathlib import Path

import pytest

from pixscribe.config import PricesConfig, config_digest, dump_config, make_config, parse_yaml
from pixscribe.errors import BudgetExhausted, ConfigError
from pixscribe.prices import PRICES_AS_OF, Price, find_price, image_tokens, text_tokens
from pixscribe.results import open_results
from pixscribe.run import check_before
from pixscribe.types import Usage
from tests.conftest import SAMPLES, MakeConfig, annotate

SMALLEST = """
name: signs
source: {uri: data/signs}
prompts: [{name: objects, kind: detect}]
output: {uri: data/runs}
"""
NO_PRICES = PricesConfig()
OWN = {"as_of": "2026-11-01", "models": {"gemini-9-test": {"input_usd": 2.0, "output_usd": 10.0, "flex_factor": 0.4}}}


def test_thoughts_cost_as_much_as_answers_and_batch_as_much_as_flex():
    price = Price(1.5, 9.0)
    usage = Usage(input_tokens=1_000_000, output_tokens=400_000, thought_tokens=600_000)
    costs = {tier: price.cost_usd(usage, tier) for tier in ("standard", "flex", "batch", "priority")}
    assert costs == {"standard": 10.5, "flex": 5.25, "batch": 5.25, "priority": 21.0}


def test_the_config_knows_better_than_the_table_and_says_since_when():
    prices = PricesConfig.model_validate({**OWN, "models": {"gemini-3.5-flash": {"input_usd": 3, "output_usd": 18}}})
    own, listed = (find_price("gemini-3.5-flash", each) for each in (prices, NO_PRICES))
    assert own is not None
    assert listed is not None
    assert (own.input_usd, own.output_usd, own.as_of) == (3.0, 18.0, "2026-11-01")
    assert (listed.input_usd, listed.output_usd, listed.as_of) == (1.5, 9.0, PRICES_AS_OF)
    assert find_price("gemini-9-test", NO_PRICES) is None


@pytest.mark.parametrize(("today", "input_usd"), [(date(2026, 12, 31), 0.75), (date(2027, 1, 1), 1.5)])
def test_an_announced_price_holds_from_its_day_on(today: date, input_usd: float):
    price = find_price("gemini-3.6-flash", NO_PRICES, today)
    assert price is not None
    assert price.input_usd == input_usd


@pytest.mark.parametrize(
    ("model", "resolution", "wh", "tokens"),
    [
        pytest.param("gemini-3.5-flash", None, (6000, 4000), 1120, id="3-unset"),
        pytest.param("gemini-3.5-flash", "low", (64, 64), 280, id="3-low"),
        pytest.param("gemini-2.5-flash", "low", (6000, 4000), 64, id="2-low"),
        pytest.param("gemini-2.5-flash", None, (384, 384), 258, id="2-small"),
        # the guide's example: units of 540 / 1.5 = 360 px, 3 x 2 of them
        pytest.param("gemini-2.5-flash", None, (960, 540), 6 * 258, id="2-tiles"),
        # by the rule 6,667 tiles, of which 16 are taken
        pytest.param("gemini-2.5-flash", None, (20_000, 10), 16 * 258, id="2-a-line"),
    ],
)
def test_an_image_has_the_tokens_of_the_guide(model: str, resolution: str | None, wh: tuple[int, int], tokens: int):
    assert image_tokens(model, resolution, wh) == tokens


def test_four_characters_are_a_token():
    assert [text_tokens("x" * length) for length in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("prices", "sentence"),
    [
        pytest.param(
            "{as_of: 2026-11-01, models: {m: {input_used: 1, output_usd: 2}}}",
            "prices.models.m.input_used: unknown key; did you mean prices.models.m.input_usd? (and 1 more)",
            id="typo",
        ),
        pytest.param(
            "{as_of: 2026-11-01, models: {m: {input_usd: 1}}}", "prices.models.m.output_usd: missing", id="half"
        ),
        pytest.param(
            "{as_of: 2026-11-01, models: {m: {input_usd: -1, output_usd: 2}}}",
            "prices.models.m.input_usd: -1: should be greater than or equal to 0",
            id="negative",
        ),
        pytest.param(
            "{as_of: 2026-11-01, models: {m: {input_usd: 1, output_usd: .nan}}}",
            "prices.models.m.output_usd: nan: should be a finite number",
            id="nan",
        ),
        pytest.param(
            "{as_of: 2026-11-01, models: {m: 3}}",
            "prices.models.m: 3: should be a mapping of keys to values",
            id="bare",
        ),
        pytest.param(
            "{models: {m: {input_usd: 1, output_usd: 2}}}",
            "prices: as_of should say of which day the prices of `models` are, such as 2026-11-01",
            id="undated",
        ),
        pytest.param("{as_of: soon}", 'prices.as_of: "soon": should be a day, such as 2026-11-01', id="soon"),
        pytest.param("{as_of: 20261101}", "prices.as_of: 20261101: should be a valid date", id="number"),
        pytest.param("{modles: {}}", "prices.modles: unknown key; did you mean prices.models?", id="section"),
    ],
)
def test_a_mistake_in_prices_is_one_sentence(prices: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        make_config(parse_yaml(f"{SMALLEST}prices: {prices}"))
    assert str(caught.value) == f"config: {sentence}"


def test_prices_make_no_other_run_and_are_frozen_with_it():
    plain = make_config(parse_yaml(SMALLEST))
    dated = make_config(
        parse_yaml(f"{SMALLEST}prices: {{as_of: 2026-11-01, models: {{m: {{input_usd: 1, output_usd: 2}}}}}}")
    )
    assert dated.prices.as_of == date(2026, 11, 1)
    assert config_digest(dated) == config_digest(plain)
    assert make_config(parse_yaml(dump_config(dated))) == dated


async def test_a_run_is_billed_at_the_prices_of_its_config(make: MakeConfig):
    source = {"uri": str(SAMPLES), "include": ["nothing.png"]}
    model = {"name": "gemini-9-test", "service_tier": "flex"}
    summary = await annotate(make(source=source, model=model, prices=OWN))
    [image] = open_results(f"{summary.output}@{summary.run}")
    assert len(image.responses) == 2
    for row in image.responses:
        dollars = (row["input_tokens"] * 2.0 + row["output_tokens"] * 10.0) / 1e6 * 0.4
        assert row["cost_usd"] == pytest.approx(dollars)


async def test_a_budget_of_a_model_that_only_the_config_knows_is_kept(make: MakeConfig, tmp_path: Path):
    limits = {"budget_usd": 0.1, "concurrency": 1}
    config = make(source={"uri": str(SAMPLES)}, model={"name": "gemini-9-test"}, limits=limits)
    with pytest.raises(ConfigError, match=r"the price of 'gemini-9-test' is not known, .*; say it in prices\.models"):
        check_before(config)
    # a question may cost 8192 tokens of output at 10 USD a million, which is most of the budget
    with pytest.raises(BudgetExhausted, match=r"of 0\.1 USD are spent"):
        await annotate(make(source={"uri": str(SAMPLES)}, model={"name": "gemini-9-test"}, limits=limits, prices=OWN))
