from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from services.excerpts import MAX_CHARS, MAX_ITEMS, STRING_CHARS, Excerpts
from services.settings import LogSettings, ModelSettings, PostgresSettings, Settings

SETTINGS = Settings(
    models=ModelSettings(openai_api_key=SecretStr("sk-very-secret")),
    postgres=PostgresSettings(url=SecretStr("postgresql://me:pass%40word@db/longrun")),
)
excerpts = Excerpts(SETTINGS)


def test_secrets_of_the_settings_are_starred_wherever_they_stand() -> None:
    told = excerpts.json({"sk-very-secret": ["Bearer sk-very-secret", {"deep": "x pass@word y pass%40word"}]})
    assert "very" not in told
    assert "word" not in told
    assert orjson.loads(told)["*" * 14][0] == "Bearer " + "*" * 14


def test_a_secret_across_a_cut_does_not_show_its_beginning() -> None:
    for before in range(STRING_CHARS - 20, STRING_CHARS + 2):
        assert "sk-" not in excerpts.json(["x" * before + "sk-very-secret" + "y" * 100])
    assert "sk-" not in excerpts.text("sk-very-secret" * 5000)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        ["x" * 100_000] * 1000,
        {str(n): "x" * 100_000 for n in range(1000)},
        [[[[[[[[["x" * 1000] * 100] * 100] * 100]]]]]],
        {"image_url": {"url": "data:image/png;base64," + "A" * 10_000_000}},
        "😀" * 100_000,
    ],
)
def test_what_is_told_is_bounded(value: Any) -> None:
    assert len(excerpts.json(value)) <= MAX_CHARS + 40


def test_of_a_long_list_the_first_item_and_the_last_are_told() -> None:
    told = orjson.loads(excerpts.json(list(range(100))))
    assert told[:2] == [0, "… (84 more)"]
    assert told[2:] == list(range(101 - MAX_ITEMS, 100))


def test_images_are_told_by_their_size() -> None:
    assert orjson.loads(excerpts.json({"url": "data:image/png;base64,AAAA"})) == {"url": "data: (26 characters)"}


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {"n": 2**70}, "half a pair \ud83d", {"\ud83d": ["\ud83d"]}, b"bytes"]
)
def test_odd_values_are_told_too(value: Any) -> None:
    assert excerpts.json(value).encode()


def test_without_secrets_nothing_is_starred() -> None:
    assert Excerpts(LogSettings()).json("plain") == "plain"
