"""Slack's signature, as the example of its documentation has it, and the words of each sender."""

from datetime import UTC, datetime, timedelta

import pytest

from services.webhooks import senders
from services.webhooks.signatures import BadSignature

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
HEADERS = {
    "x-slack-request-timestamp": "1531420618",
    "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
}
THEN = datetime.fromtimestamp(1531420618, UTC)
WINDOW = timedelta(minutes=5)


def test_the_signature_of_slacks_own_example_is_good_for_as_long_as_the_window() -> None:
    senders.verify("slack", ["another", SECRET], HEADERS, BODY, THEN + WINDOW, WINDOW)
    for late in (timedelta(minutes=6), -timedelta(minutes=6)):
        with pytest.raises(BadSignature):
            senders.verify("slack", [SECRET], HEADERS, BODY, THEN + late, WINDOW)
    with pytest.raises(BadSignature):
        senders.verify("slack", [SECRET], HEADERS, BODY + b"&", THEN, WINDOW)
