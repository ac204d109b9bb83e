from api.wheel import Wheel


def test_what_was_added_is_handed_out_once_and_in_its_turn() -> None:
    wheel: Wheel[str] = Wheel(3)
    for turns, item in enumerate(("next", "second", "third"), 1):
        wheel.add(item, turns)
    assert [wheel.turn() for _ in range(5)] == [{"next"}, {"second"}, {"third"}, set(), set()]


def test_what_is_due_at_once_waits_for_the_next_turn_and_nothing_waits_for_more_than_a_round() -> None:
    wheel: Wheel[str] = Wheel(3)
    wheel.add("at once", 0)
    wheel.add("too late", 100)
    assert [wheel.turn() for _ in range(3)] == [{"at once"}, set(), {"too late"}]


def test_what_was_discarded_is_not_handed_out() -> None:
    wheel: Wheel[str] = Wheel(2)
    wheel.add("gone", 2)
    wheel.discard("gone")
    assert [wheel.turn() for _ in range(3)] == [set(), set(), set()]
