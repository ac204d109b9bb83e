"""Servers that the machine's environment names."""

import pytest

from services.embedded.console import EmbeddedError
from services.embedded.environment import given
from services.embedded.stores import Wanted, with_next_database


def test_urls_are_taken_as_they_are() -> None:
    found = given({"DATABASE_URL": "postgresql://a/b", "REDIS_URL": "redis://c/3", "RABBITMQ_URL": "amqp://d"})
    assert (found.database_url, found.redis_url, found.rabbitmq_url) == ("postgresql://a/b", "redis://c/3", "amqp://d")


def test_parts_become_urls_with_their_secrets_quoted() -> None:
    found = given({"REDIS_HOST": "cache", "REDIS_PASSWORD": "p@ss", "RABBITMQ_HOST": "queue", "RABBITMQ_PORT": "5673"})
    assert found.redis_url == "redis://:p%40ss@cache:6379/0"
    assert found.rabbitmq_url == "amqp://guest:guest@queue:5673/%2F"


def test_nothing_given_means_embedded_servers_and_redis_as_the_broker() -> None:
    found = given({})
    assert (found.database_url, found.redis_url, found.rabbitmq_url) == ("", "", "")
    assert Wanted(found).broker == "redis"


@pytest.mark.parametrize(
    ("environ", "flag", "broker"),
    [
        ({"RABBITMQ_URL": "amqp://d"}, False, "rabbitmq"),
        ({"RABBITMQ_URL": "amqp://d", "BROKER": "redis"}, False, "redis"),
        ({"BROKER": "redis"}, True, "rabbitmq"),
        ({"BROKER": "rabbitmq"}, False, "rabbitmq"),
    ],
)
def test_the_broker_is_what_was_asked_for(environ: dict[str, str], flag: bool, broker: str) -> None:
    assert Wanted(given(environ), rabbitmq=flag).broker == broker


def test_an_unknown_broker_is_named() -> None:
    with pytest.raises(EmbeddedError, match="BROKER is 'kafka'"):
        _ = Wanted(given({"BROKER": "kafka"})).broker


def test_the_broker_gets_the_next_database_of_a_given_redis() -> None:
    assert with_next_database("redis://:secret@host:6379/3") == "redis://:secret@host:6379/4"
    assert with_next_database("redis://host") == "redis://host/1"


def test_the_first_of_several_redis_servers_is_the_one_that_replaces_ours() -> None:
    found = given({"REDIS_URLS": "redis://one/2#a, redis://two#b", "REDIS_URL": "redis://three"})
    assert (found.redis_url, found.redis_urls) == ("redis://one/2#a", "redis://one/2#a, redis://two#b")
