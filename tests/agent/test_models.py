import pytest

from agent.catalog import PROVIDERS
from agent.models import ALIASES, MODELS, UNKNOWN, look_up, unalias


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("anthropic/claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("anthropic/claude-opus-4-1-20250805", "claude-opus-4"),
        ("openrouter/anthropic/claude-sonnet-5.5", "claude-sonnet-5-5"),
        ("anthropic/claude-opus-7", "claude"),
        ("openai/gpt-4o-mini", "gpt-4o"),
        ("openai/gpt-4.1-mini", "gpt-4-1"),
        ("openai/GPT-5.5", "gpt-5"),
        ("ollama/llama3:8b", "llama3"),
    ],
)
def test_the_longest_beginning_that_is_known_counts(name: str, key: str) -> None:
    assert look_up(name) is MODELS[key]


@pytest.mark.parametrize("name", ["openai/script-text", "vllm/my-model", "openai/gpt4all", "demo/tour", "openai/o30"])
def test_an_unknown_model_has_small_limits_and_no_images(name: str) -> None:
    assert look_up(name) is UNKNOWN
    assert (UNKNOWN.context_window, UNKNOWN.max_output, UNKNOWN.images) == (32_000, 4_000, False)


def test_every_alias_names_a_known_model_of_a_provider() -> None:
    for alias, name in ALIASES.items():
        assert alias == alias.lower()
        assert name.partition("/")[0] in PROVIDERS
        assert look_up(name) is not UNKNOWN
        assert unalias(alias.upper()) == unalias(name) == name


def test_what_a_model_may_write_fits_what_it_may_read() -> None:
    for model in MODELS.values():
        assert 1_024 < model.max_output < model.context_window
