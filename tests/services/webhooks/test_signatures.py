"""Signatures, beside those of the reference implementation (standardwebhooks 1.1)."""

from datetime import UTC, datetime, timedelta

import pytest

from services.webhooks import signatures
from services.webhooks.signatures import BadSignature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
REFERENCE = [
    (
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    ("run_1", 1700000000, '{"text":"Grüße"}'.encode(), "v1,tLBrAF4jn/7cPtYm4PqTBPMLQe9I/IICHPbUs7n8x4Q="),
]
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
WINDOW = timedelta(minutes=5)
BODY = b'{"a": 1}'


@pytest.mark.parametrize(("webhook_id", "timestamp", "body", "signature"), REFERENCE)
def test_a_signature_is_that_of_the_reference_implementation(
    webhook_id: str, timestamp: int, body: bytes, signature: str
) -> None:
    assert signatures.sign(SECRET, webhook_id, timestamp, body) == signature


def test_what_was_signed_with_either_secret_of_two_is_let_in() -> None:
    old, new, other = (signatures.make_secret() for _ in range(3))
    said = signatures.headers([new, old], "run_1", NOW, BODY)
    for key in (old, new):
        assert signatures.verify([key], said, BODY, NOW, WINDOW) == "run_1"
    assert signatures.verify([new, old], signatures.headers([old], "run_1", NOW, BODY), BODY, NOW, WINDOW)
    with pytest.raises(BadSignature):
        signatures.verify([other], said, BODY, NOW, WINDOW)


def test_a_webhook_counts_for_as_long_as_the_window_into_both_directions() -> None:
    said = signatures.headers([SECRET], "run_1", NOW, BODY)
    for late in (-WINDOW, timedelta(0), WINDOW):
        assert signatures.verify([SECRET], said, BODY, NOW + late, WINDOW)
    for late in (-WINDOW - timedelta(seconds=1), WINDOW + timedelta(seconds=1)):
        with pytest.raises(BadSignature):
            signatures.verify([SECRET], said, BODY, NOW + late, WINDOW)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "run_2"},
        {"webhook-id": ""},
        {"webhook-id": "x" * 256},
        {"webhook-id": "rün"},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "1777636801"},
        {"webhook-timestamp": "-5"},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": "٣"},
        {"webhook-timestamp": "9" * 5000},
        {"webhook-timestamp": "1e9"},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,ü"},
        {"webhook-signature": "v1,AAAA v1a,BBBB"},
    ],
    ids=repr,
)
def test_whatever_is_changed_of_the_headers_is_refused(change: dict[str, str]) -> None:
    said = signatures.headers([SECRET], "run_1", NOW, BODY)
    with pytest.raises(BadSignature):
        signatures.verify([SECRET], {**said, **change}, BODY, NOW, WINDOW)


def test_so_many_signatures_that_comparing_them_would_be_work_are_refused() -> None:
    said = signatures.headers([SECRET], "run_1", NOW, BODY)
    many = " ".join([said["webhook-signature"]] * 11)
    with pytest.raises(BadSignature):
        signatures.verify([SECRET], {**said, "webhook-signature": many}, BODY, NOW, WINDOW)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_AAAA", "whsec_ü", "secret!", "whsec_" + "A" * 2000])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="must"):
        signatures.key_of(secret)
