"""What models cost. Pure; amounts are micro-credits, whole ones, rounded up for each call.

A price in credits for a million tokens is one in micro-credits for a token.
"""

from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal

from services.settings import Price

MICRO = 1_000_000
"""Micro-credits of a credit."""
MOST_TOKENS = 1_000_000_000
"""More than any call has: a provider that says more is not believed."""


def price_of(prices: Mapping[str, Price], model_name: str) -> Price | None:
    """The price under the longest name that fits; None for a model that is not sold."""
    fitting = [name for name in prices if fits(name, model_name)]
    return prices[max(fitting, key=lambda name: (not name.endswith("*"), len(name)))] if fitting else None


def allowed(names: Iterable[str], model_name: str) -> bool:
    return any(fits(name, model_name) for name in names)


def fits(name: str, model_name: str) -> bool:
    """Whether a name of the configuration means this model, whatever its parameters are."""
    bare = model_name.partition("?")[0]
    return bare.startswith(name[:-1]) if name.endswith("*") else bare == name


def cost(price: Price, usage: Mapping[str, int]) -> int:
    """Of the tokens that a provider counted (agent.llm.chunk.Usage): details are part of the sums."""
    cached, written, thought = (
        tokens(usage, name) for name in ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
    )
    plain = max(tokens(usage, "prompt_tokens") - cached - written, 0)
    said = max(tokens(usage, "completion_tokens") - thought, 0)
    return whole(
        plain * price.input
        + cached * or_else(price.cached_input, price.input)
        + written * or_else(price.cache_write, price.input)
        + said * price.output
        + thought * or_else(price.reasoning, price.output)
    )


def most(price: Price, prompt_tokens: int, answered: int) -> int:
    """What so many tokens can cost, whichever kind they are."""
    sent = max(price.input, or_else(price.cached_input, price.input), or_else(price.cache_write, price.input))
    said = max(price.output, or_else(price.reasoning, price.output))
    return whole(prompt_tokens * sent + answered * said)


def tokens(usage: Mapping[str, int], name: str) -> int:
    return min(max(usage.get(name, 0), 0), MOST_TOKENS)


def or_else(price: Decimal | None, usual: Decimal) -> Decimal:
    return usual if price is None else price


def whole(amount: Decimal | int) -> int:
    return int(Decimal(amount).to_integral_value(ROUND_CEILING))


def in_credits(amount: int) -> float:
    """For people: a millionth of a credit is told exactly up to nine billion credits."""
    return amount / MICRO
