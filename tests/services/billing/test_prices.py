"""What tokens cost, to the millionth."""

import pytest

from services.billing import prices
from services.settings import Price

PRICE = Price.model_validate({"input": 3, "output": 15})
DETAILED = Price.model_validate(
    {"input": 3, "output": 15, "cached_input": "0.3", "cache_write": "3.75", "reasoning": 20}
)


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        (PRICE, {"prompt_tokens": 1000, "completion_tokens": 100}, 4500),
        (PRICE, {"prompt_tokens": 1000, "completion_tokens": 100, "cached_tokens": 900, "reasoning_tokens": 50}, 4500),
        (DETAILED, {"prompt_tokens": 1000, "cached_tokens": 600, "cache_write_tokens": 100}, 900 + 180 + 375),
        (DETAILED, {"completion_tokens": 100, "reasoning_tokens": 60}, 40 * 15 + 60 * 20),
        (DETAILED, {"prompt_tokens": 10, "cached_tokens": 1}, 28),
        (DETAILED, {"prompt_tokens": 5, "cached_tokens": 10}, 3),
        (DETAILED, {"prompt_tokens": -5, "completion_tokens": 10**30}, 15 * prices.MOST_TOKENS),
        (PRICE, {}, 0),
    ],
    ids=[
        "plain",
        "details cost the same",
        "cached and written",
        "reasoning",
        "rounded up",
        "false details",
        "absurd",
        "",
    ],
)
def test_a_call_costs_what_its_tokens_do(price: Price, usage: dict[str, int], cost: int) -> None:
    assert prices.cost(price, usage) == cost


def test_no_kind_of_tokens_costs_more_than_what_is_reserved() -> None:
    most = prices.most(DETAILED, 1000, 100)
    kinds = ("cached_tokens", "cache_write_tokens")
    usages = [{"prompt_tokens": 1000, "completion_tokens": 100, "reasoning_tokens": 100, kind: 1000} for kind in kinds]
    assert max(prices.cost(DETAILED, usage) for usage in usages) == most


def test_the_name_that_fits_best_has_the_price() -> None:
    named = {name: Price.model_validate({"input": number, "output": 0}) for number, name in enumerate(
        ("*", "openai/*", "openai/gpt-4o*", "openai/gpt-4o", "demo/lorem")
    )}  # fmt: skip

    def found(model: str) -> int:
        price = prices.price_of(named, model)
        assert price
        return int(price.input)

    assert [found(model) for model in ("groq/x", "openai/o3", "openai/gpt-4o-mini", "openai/gpt-4o")] == [0, 1, 2, 3]
    assert found("demo/lorem?chunks=5") == 4
    assert prices.price_of({"openai/*": PRICE}, "groq/x") is None
