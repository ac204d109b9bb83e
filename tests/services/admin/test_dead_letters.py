import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from services import settings
from services.admin.cli import main
from services.admin.dead_letters import Chosen
from services.broker import HEALTH_QUEUE, RUN_QUEUE, Rabbit
from services.dead_letters import open_box
from services.embedded.environment import CHECKOUT
from tests.services.conftest import Graveyard

SECRET = "s3cr3t-that-nobody-may-see"
SECRETS: dict[str, Any] = {
    "api_token": SECRET,
    "nested": [{"Authorization": f"Bearer {SECRET}", "clientSecret": {"value": SECRET}}],
    "url": f"https://user:{SECRET}@host/path?token={SECRET}&page=1",
    "header": f"Authorization: Bearer {SECRET}",
    "text": f'{{"password": "{SECRET}", "kind": "plain"}}',
    "token_count": 0,
}


class Admin:
    """The commands, on one queue, in this process."""

    def __init__(self, graveyard: Graveyard, capsys: pytest.CaptureFixture[str]) -> None:
        self.graveyard, self.capsys = graveyard, capsys
        self.out = self.err = ""

    def run(self, *arguments: str, queue: bool = True) -> int:
        """The exit code; what was printed is kept."""
        where = ["--queue", self.graveyard.queue] if queue else []
        try:
            return main(["dead-letters", *arguments, *where])
        except SystemExit as usage:
            return int(str(usage.code))
        finally:
            self.out, self.err = self.capsys.readouterr()

    def json(self, *arguments: str, code: int = 0) -> Any:
        assert self.run(*arguments, "--json") == code, self.err
        return json.loads(self.out)

    @property
    def left(self) -> list[str]:
        with open_box(self.graveyard.settings, self.graveyard.queue) as box:
            return [letter.id for letter in box.letters()]


@pytest.fixture
def admin(graveyard: Graveyard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    monkeypatch.setenv("BROKER", graveyard.settings.broker.kind)
    monkeypatch.setenv("RABBITMQ_URL", graveyard.url)
    monkeypatch.setenv("BROKER_REDIS_URL", graveyard.url)
    settings.load.cache_clear()
    yield Admin(graveyard, capsys)
    settings.load.cache_clear()


def test_a_list_shows_the_oldest_and_how_many_there_are(admin: Admin) -> None:
    buried = admin.graveyard.bury(25)
    assert admin.run("list") == 0
    assert f"{admin.graveyard.queue} 25" in admin.out
    assert all(message_id in admin.out for message_id in buried[:20])
    assert buried[20] not in admin.out
    assert "run_agent_background" in admin.out
    listed = admin.json("list", "--limit", "3")
    assert listed["counts"] == {admin.graveyard.queue: 25}
    assert [letter["id"] for letter in listed["dead_letters"]] == buried[:3]
    assert admin.left == buried


def test_a_list_without_a_queue_is_about_those_of_the_actors(admin: Admin) -> None:
    if isinstance(admin.graveyard.broker, Rabbit):
        for queue in (RUN_QUEUE, HEALTH_QUEUE):
            admin.graveyard.broker.declare_queue(queue, ensure=True)
    assert admin.run("list", "--json", queue=False) == 0
    assert set(json.loads(admin.out)["counts"]) == {RUN_QUEUE, HEALTH_QUEUE}


def test_filters_choose_by_actor_and_age(admin: Admin) -> None:
    [first] = admin.graveyard.bury()
    [second] = admin.graveyard.bury(actor_name="another")
    chosen = [letter["id"] for letter in admin.json("list", "--actor", "another")["dead_letters"]]
    assert chosen == [second]
    assert admin.json("list", "--older-than", "1h")["dead_letters"] == []
    assert [letter["id"] for letter in admin.json("list", "--older-than", "0s")["dead_letters"]] in (
        [first, second],
        [],
    )


def test_one_letter_is_shown_whole_and_its_secrets_are_not(admin: Admin) -> None:
    [buried, _] = admin.graveyard.bury(2, kwargs=SECRETS)
    assert admin.run("show", buried) == 0
    shown = json.loads(admin.out)
    assert (shown["id"], shown["queue"], shown["actor"]) == (buried, admin.graveyard.queue, "run_agent_background")
    assert shown["died_at"] >= shown["sent_at"][:19]
    assert shown["kwargs"]["token_count"] == 0
    assert shown["kwargs"]["url"] == "https://user:***@host/path?token=***&page=1"
    assert '"kind": "plain"' in shown["kwargs"]["text"]
    for command in (["show", buried], ["show", buried, "--json"], ["list"], ["list", "--json"]):
        assert admin.run(*command) == 0
        assert buried in admin.out
        assert SECRET not in admin.out + admin.err


def test_what_is_no_message_is_shown_as_far_as_it_can_be(admin: Admin) -> None:
    admin.graveyard.bury_bytes(b'{"password": "%s", \x1b[31m' % SECRET.encode() + b"x" * 5000)
    admin.capsys.readouterr()
    [unreadable] = admin.json("list")["dead_letters"]
    assert unreadable["actor"] is None
    assert unreadable["bytes"] > 5000
    assert unreadable["unreadable"].startswith('{"password": ***')
    assert admin.run("list") == 0
    assert unreadable["id"] in admin.out
    assert SECRET not in admin.out
    assert "\x1b[31m" not in admin.out
    assert admin.run("replay", "--all") == 1
    assert "left alone" in admin.out
    assert admin.left == [unreadable["id"]]


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bury",
    [
        lambda graveyard: graveyard.bury_bytes(b'{"args": [%b]}' % (b"1" * 5000)),
        lambda graveyard: graveyard.bury(kwargs={"deep": nested(700)}),
    ],
    ids=["a huge number", "deeply nested"],
)
def test_one_odd_letter_keeps_nobody_from_the_others(admin: Admin, bury: Callable[[Graveyard], None]) -> None:
    bury(admin.graveyard)
    [other] = admin.graveyard.bury()
    admin.capsys.readouterr()
    for command in (["list"], ["list", "--json"], ["show", other], ["show", other, "--json"]):
        assert admin.run(*command) == 0
        assert other in admin.out
    [odd, _] = admin.json("list")["dead_letters"]
    assert admin.run("show", odd["id"]) == 0
    assert admin.run("purge", odd["id"]) == 0
    assert admin.left == [other]


def test_a_replay_sends_the_named_ones_and_says_which_it_did_not_find(admin: Admin) -> None:
    first, second, third = admin.graveyard.bury(3)
    assert admin.json("replay", third, first, "nobody", code=1) == {
        "replayed": 2, "first": [first, third], "not_found": ["nobody"], "dry_run": False, "unreadable": 0,
    }  # fmt: skip
    assert "there is no dead letter nobody" in admin.err
    assert admin.left == [second]
    assert [message_id for message_id, _ in admin.graveyard.taken()] == [first, third]


def test_a_dry_run_only_says_what_would_be_done(admin: Admin) -> None:
    buried = admin.graveyard.bury(3)
    for command, did in (("replay", "replayed"), ("purge", "purged")):
        for choice in (["--all"], [buried[1]], ["--actor", "run_agent_background"]):
            done = admin.json(command, *choice, "--dry-run")
            assert (done[did], done["dry_run"]) == (1 if choice == [buried[1]] else 3, True)
            assert admin.run(command, *choice, "--dry-run") == 0
            assert "would be" in admin.out
    assert admin.left == buried
    assert admin.graveyard.taken() == []


def test_a_purge_removes_all_or_the_named_or_the_old_ones(admin: Admin) -> None:
    buried = admin.graveyard.bury(4)
    assert admin.json("purge", buried[2])["purged"] == 1
    assert admin.left == [buried[0], buried[1], buried[3]]
    assert admin.json("purge", "--older-than", "1h")["purged"] == 0
    assert admin.json("purge", "--all", "--actor", "another")["purged"] == 0
    assert admin.json("purge", "--all")["purged"] == 3
    assert admin.left == []
    assert admin.graveyard.taken() == []


def test_old_ones_are_those_that_died_before(admin: Admin) -> None:
    buried = admin.graveyard.bury(3)
    with open_box(admin.graveyard.settings, admin.graveyard.queue) as box:
        died = [letter.died_at for letter in box.letters()]
    last = died[-1]
    assert last
    before = Chosen(ids=set(), actor=None, died_before=last + timedelta(seconds=1), scan=10)
    at_the_time = Chosen(ids=set(), actor=None, died_before=died[0], scan=10)
    with open_box(admin.graveyard.settings, admin.graveyard.queue) as box:
        assert [letter.id for letter in before.of(box)] == buried
    with open_box(admin.graveyard.settings, admin.graveyard.queue) as box:
        assert list(at_the_time.of(box)) == []


def test_letters_that_die_again_at_once_are_not_replayed_for_ever(admin: Admin) -> None:
    admin.graveyard.bury(5)
    everything = Chosen(ids=set(), actor=None, died_before=None, scan=10)
    replayed = 0
    with open_box(admin.graveyard.settings, admin.graveyard.queue) as box:
        for letter in everything.of(box):
            box.replay(letter)
            admin.graveyard.let_die(1)
            replayed += 1
    assert replayed == 5
    assert len(admin.left) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["purge"],
        ["replay"],
        ["purge", "an-id", "--all"],
        ["list", "--limit", "0"],
        ["purge", "--older-than", "soon"],
        [],
    ],
)
def test_what_is_not_understood_is_an_error_of_usage(admin: Admin, arguments: list[str]) -> None:
    admin.graveyard.bury()
    assert admin.run(*arguments) == 2
    assert "usage: admin dead-letters" in admin.err
    assert len(admin.left) == 1


@pytest.mark.parametrize("graveyard", ["rabbitmq"], indirect=True)
def test_a_queue_that_is_not_there_is_said_in_a_sentence(admin: Admin) -> None:
    assert admin.run("list", "--queue", "nobodys", queue=False) == 1
    assert admin.err == "admin: There are no dead letters of 'nobodys': the message broker has no such queue.\n"
    assert admin.out == ""


def test_a_broker_that_is_away_is_said_in_one_line(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_CONNECTION_ATTEMPTS", "1")
    for name, scheme in (("RABBITMQ_URL", "amqp"), ("BROKER_REDIS_URL", "redis")):
        monkeypatch.setenv(name, f"{scheme}://user:{SECRET}@127.0.0.1:1")
    process = subprocess.run(
        [sys.executable, "-m", "services.admin", "dead-letters", "list"],
        cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr == "admin: The message broker at 127.0.0.1:1 does not answer.\n"


def test_a_setting_that_is_wrong_is_named_without_its_value(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_PORT", SECRET)
    assert admin.run("list") == 1
    assert "RABBITMQ_PORT" in admin.err.upper() or "port" in admin.err
    assert SECRET not in admin.err + admin.out


def test_the_shell_command_is_the_same(admin: Admin) -> None:
    [buried] = admin.graveyard.bury()
    done = subprocess.run(
        ["./dev", "admin", "dead-letters", "list", "--json", "--queue", admin.graveyard.queue],
        cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [letter["id"] for letter in json.loads(done.stdout)["dead_letters"]] == [buried]
