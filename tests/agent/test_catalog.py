import subprocess
import sys

import pytest

from agent.catalog import DemoModel, demo_model, resolve_model
from services.errors import Unprocessable
from services.settings import DeploymentSettings, ModelSettings, Settings

NO_KEYS = Settings(models=ModelSettings(openai_api_key="", anthropic_api_key="", default_model=""))
WITH_KEY = Settings(models=ModelSettings(openai_api_key="sk-test", default_model=""))
PRODUCTION = NO_KEYS.model_copy(update={"deployment": DeploymentSettings(environment="production")})


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        (" openai/gpt-4o ", "openai/gpt-4o"),
        ("OpenAI/gpt-4o", "openai/gpt-4o"),
        ("openrouter/anthropic/claude-sonnet-4", "openrouter/anthropic/claude-sonnet-4"),
        ("ollama/llama3:8b", "ollama/llama3:8b"),
        ("anthropic/claude-opus-5-5", "anthropic/claude-opus-5-5"),
        ("claude-haiku-4-5", "anthropic/claude-haiku-4-5"),
        ("Sonnet", "anthropic/claude-sonnet-5-5"),
        ("claude-sonnet-4", "anthropic/claude-sonnet-4-6"),
        ("anthropic/claude-sonnet-4", "anthropic/claude-sonnet-4"),
        ("kimi-k2", "openrouter/moonshotai/kimi-k2"),
        ("demo/lorem?chunks=5&delay_ms=0", "demo/lorem?chunks=5&delay_ms=0"),
    ],
)
def test_a_name_goes_to_the_provider_of_its_prefix_and_a_bare_one_by_alias_or_to_openai(
    asked: str, resolved: str
) -> None:
    assert resolve_model(NO_KEYS, asked) == resolved


def test_the_default_is_the_demo_until_there_is_a_key_or_a_setting() -> None:
    assert resolve_model(NO_KEYS, None) == "demo/tour"
    assert resolve_model(WITH_KEY, "") == "openai/gpt-4o-mini"
    chosen = Settings(models=ModelSettings(openai_api_key="sk-test", default_model="groq/llama"))
    assert resolve_model(chosen, "  ") == "groq/llama"
    anthropic = Settings(models=ModelSettings(openai_api_key="", anthropic_api_key="sk-ant", default_model=""))
    assert resolve_model(anthropic, None) == "anthropic/claude-haiku-5-5"


@pytest.mark.parametrize(
    "name",
    [
        "nobody/model",
        "openai/",
        "/model",
        "two words",
        "nul\x00",
        "x" * 201,
        "demo/unknown",
        "demo/tour?chunks=5",
        "demo/lorem?speed=5",
        "demo/lorem?chunks=-1",
        "demo/lorem?chunks=many",
        "demo/lorem?chunks=",
        "demo/lorem?chunks=100001",
        "demo/lorem?delay_ms=60001",
        "demo/lorem?delay_ms=9999999999999999999",
    ],
)
def test_a_name_that_cannot_work_is_refused_and_says_which_field_it_was(name: str) -> None:
    with pytest.raises(Unprocessable, match="model_name"):
        resolve_model(NO_KEYS, name)


def test_production_refuses_demos_even_as_the_default() -> None:
    for name in ("demo/echo", None):
        with pytest.raises(Unprocessable, match="production"):
            resolve_model(PRODUCTION, name)
    assert resolve_model(PRODUCTION, "gpt-4o") == "openai/gpt-4o"


def test_demo_parameters_have_defaults_and_the_ends_of_their_ranges_are_allowed() -> None:
    assert demo_model("demo/lorem") == DemoModel("lorem", chunks=200, delay_ms=20)
    assert demo_model("demo/lorem?chunks=100000&delay_ms=60000") == DemoModel("lorem", 100_000, 60_000)
    assert demo_model("demo/lorem?chunks=0") == DemoModel("lorem", 0, 20)


def test_the_catalog_loads_without_the_sdk() -> None:
    script = "import sys, agent.catalog; sys.exit('openai' in sys.modules or 'httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
