from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from services.runs import lifecycle, store
from services.runs.lifecycle import HandOver
from services.runs.stores import Stores
from tests.services.runs.seeds import claim, fence_of, make_run, row_of


class Confirmations:
    """A publisher whose confirmations come when a test lets them."""

    def __init__(self) -> None:
        self.held: list[Callable[[bool], None]] = []

    def send(self, _message: Any, confirmed: Callable[[bool], None]) -> bool:
        self.held.append(confirmed)
        return True

    def come(self) -> None:
        for confirmed in self.held:
            confirmed(True)


async def test_a_message_that_is_confirmed_is_noted_in_the_row(stores: Stores) -> None:
    late, run = Confirmations(), await make_run(stores.pool)
    with patch.object(stores.dispatch.publisher, "send", late.send):
        stores.dispatch.send_run(run)
    late.come()
    await stores.dispatch.note()
    assert (await row_of(stores.pool, run.id)).message_sent_at


async def test_a_message_that_was_spent_before_its_confirmation_is_noted_is_not_waited_for(stores: Stores) -> None:
    late, run = Confirmations(), await make_run(stores.pool)
    with patch.object(stores.dispatch.publisher, "send", late.send):
        stores.dispatch.send_run(run)
    await store.forget_message(stores.pool, run.id)
    late.come()
    await stores.dispatch.note()
    assert (await row_of(stores.pool, run.id)).message_sent_at is None, "nobody would send another"


async def test_the_message_of_a_run_that_was_given_back_is_noted(stores: Stores) -> None:
    late, run = Confirmations(), await claim(stores, await make_run(stores.pool))
    [queued] = await lifecycle.hand_over_all(stores.pool, [HandOver(fence_of(run), 0, settled=True)])
    assert queued
    with patch.object(stores.dispatch.publisher, "send", late.send):
        stores.dispatch.send_run(queued)
    late.come()
    await stores.dispatch.note()
    assert (await row_of(stores.pool, run.id)).message_sent_at
