import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import islice
from unittest.mock import patch

import dramatiq
import pytest
from pydantic import SecretStr

from services.broker import Rabbit, RedisQueues, StrictEncoder
from services.dead_letters import PAGE, Box, RabbitBox, open_box
from services.errors import NotFound, Unavailable
from services.settings import BrokerSettings, Settings
from tests.proxy import Proxy
from tests.services.conftest import Graveyard
from tests.waiting import eventually


def ids(box: Box) -> list[str]:
    return [letter.id for letter in box.letters()]


def test_dead_letters_are_read_oldest_first_and_stay(graveyard: Graveyard) -> None:
    buried = graveyard.bury(3)
    for _ in range(2):
        with open_box(graveyard.settings, f"{graveyard.queue}.XQ") as box:
            assert box.count() == 3
            letters = list(box.letters())
        assert [letter.id for letter in letters] == buried
        assert {(letter.queue, letter.actor, letter.reason) for letter in letters} == {
            (graveyard.queue, "run_agent_background", "rejected")
        }
        for letter in letters:
            assert letter.died_at
            assert abs(datetime.now(UTC) - letter.died_at) < timedelta(seconds=30)
            assert letter.content
            assert letter.content["kwargs"]["model_name"] == "demo/echo"


def test_what_is_no_message_is_a_dead_letter_too_and_cannot_be_sent_again(graveyard: Graveyard) -> None:
    with patch.object(dramatiq.message, "global_encoder", StrictEncoder()):
        graveyard.bury_bytes(b"nonsense")
    with open_box(graveyard.settings, graveyard.queue) as box:
        [letter] = box.letters()
        assert letter.id.startswith("raw-")
        assert (letter.body, letter.content, letter.actor, letter.target) == (b"nonsense", None, None, None)
        with pytest.raises(ValueError, match="cannot be sent again"):
            box.replay(letter)
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert ids(box) == [letter.id]


def test_a_replayed_letter_waits_in_its_queue_as_before_and_is_dead_no_more(graveyard: Graveyard) -> None:
    first, second, third = graveyard.bury(3)
    with open_box(graveyard.settings, graveyard.queue) as box:
        for letter in box.letters():
            if letter.id != second:
                box.replay(letter)
    assert graveyard.taken() == [(first, 7), (third, 7)]
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert ids(box) == [second]


def test_removing_takes_the_letters_that_were_read_and_no_others(graveyard: Graveyard) -> None:
    buried = graveyard.bury(5)
    with open_box(graveyard.settings, graveyard.queue) as box:
        for letter in islice(box.letters(), 4):
            if letter.id != buried[1]:
                box.remove(letter)
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert ids(box) == [buried[1], buried[4]]
        assert box.count() == 0 if isinstance(graveyard.broker, Rabbit) else 2
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert box.purge() == 2
        assert ids(box) == []
    assert graveyard.taken() == []


def test_acting_on_more_than_a_page_misses_none(graveyard: Graveyard) -> None:
    buried = graveyard.bury(PAGE + PAGE // 2)
    with open_box(graveyard.settings, graveyard.queue) as box:
        for number, letter in enumerate(box.letters()):
            if number % 3:
                box.remove(letter)
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert ids(box) == buried[::3]


def test_of_a_long_queue_no_more_is_read_than_is_asked_for(graveyard: Graveyard) -> None:
    graveyard.bury(3 * PAGE)
    with open_box(graveyard.settings, graveyard.queue) as box:
        sent_before = bytes_sent(graveyard)
        first = list(islice(box.letters(), 20))
        assert len(first) == 20
        if isinstance(graveyard.broker, Rabbit):
            assert box.count() == 3 * PAGE - 20
        else:
            assert bytes_sent(graveyard) - sent_before < 2 * PAGE * len(first[0].body)


def bytes_sent(graveyard: Graveyard) -> int:
    if not isinstance(graveyard.broker, RedisQueues):
        return 0
    return int(graveyard.broker.client.info("stats")["total_net_output_bytes"])


READER = """
import os, sys, time
from services.dead_letters import open_box
from services.settings import load
with open_box(load(), sys.argv[1]) as box:
    letters = box.letters()
    next(letters), next(letters)
    print("reading", flush=True)
    time.sleep(60)
"""


def kill_a_reader(graveyard: Graveyard) -> None:
    """A process that has read two letters is killed."""
    names = {"BROKER": graveyard.settings.broker.kind, "RABBITMQ_URL": graveyard.url, "BROKER_REDIS_URL": graveyard.url}
    argv = [sys.executable, "-c", READER, graveyard.queue]
    with subprocess.Popen(argv, env={**os.environ, **names}, stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == b"reading\n"
        reader.send_signal(signal.SIGKILL)


async def test_a_reader_that_is_killed_loses_nothing_and_changes_no_order(graveyard: Graveyard) -> None:
    buried = graveyard.bury(4)
    await asyncio.to_thread(kill_a_reader, graveyard)

    def read() -> list[str]:
        with open_box(graveyard.settings, graveyard.queue) as box:
            return ids(box)

    await eventually(lambda: read() == buried)


@pytest.mark.parametrize("graveyard", ["rabbitmq"], indirect=True)
def test_a_replay_that_is_cut_after_its_confirm_leaves_the_letter_where_it_is(graveyard: Graveyard) -> None:
    [buried] = graveyard.bury()
    with (
        patch.object(RabbitBox, "remove", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
        open_box(graveyard.settings, graveyard.queue) as box,
    ):
        box.replay(next(box.letters()))
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert ids(box) == [buried], "at least once: it may come twice, never not at all"
    assert graveyard.taken() == [(buried, 7)]


@pytest.mark.parametrize("graveyard", ["rabbitmq"], indirect=True)
def test_a_letter_whose_queue_is_gone_stays(graveyard: Graveyard) -> None:
    [buried] = graveyard.bury()
    assert isinstance(graveyard.broker, Rabbit)
    graveyard.broker.channel.queue_delete(graveyard.queue)
    with pytest.raises(NotFound), open_box(graveyard.settings, graveyard.queue) as box:
        box.replay(next(box.letters()))
    with open_box(graveyard.settings, graveyard.queue) as box:
        assert ids(box) == [buried]


@pytest.mark.parametrize("graveyard", ["rabbitmq"], indirect=True)
def test_a_queue_that_does_not_exist_is_named(graveyard: Graveyard) -> None:
    with pytest.raises(NotFound, match="'nobodys'"), open_box(graveyard.settings, "nobodys"):
        pass


async def test_a_broker_that_is_away_is_named_without_its_password(graveyard: Graveyard) -> None:
    async with Proxy(graveyard.url) as proxy:
        url = proxy.url.replace("://", "://user:hidden@") if "@" not in proxy.url else proxy.url
    names = {"kind": graveyard.settings.broker.kind, "url": SecretStr(url), "redis_url": SecretStr(url)}
    settings = Settings(broker=BrokerSettings.model_validate({**names, "connection_attempts": 1}))
    away = r"at 127\.0\.0\.1:\d+ does not answer"
    with pytest.raises(Unavailable, match=away) as caught, open_box(settings, graveyard.queue) as box:
        box.count()
    assert "hidden" not in str(caught.value)
