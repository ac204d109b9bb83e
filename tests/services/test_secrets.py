from uuid import uuid4

import pytest
from pydantic import SecretStr

from services.secrets import Secrets, SecretUnreadable
from services.settings import SecretsSettings

OLD, NEW = "an-old-key-of-32-characters-or-more", "a-new-key-of-32-characters-or-more!"


def test_what_is_sealed_opens_and_does_not_show() -> None:
    secrets, word = Secrets([NEW]), f"sk-{uuid4()} äöü"
    assert word not in secrets.seal(word)
    assert secrets.open(secrets.seal(word)) == word
    assert secrets.seal(word) != secrets.seal(word), "equal secrets do not look equal"


def test_a_new_key_in_front_encrypts_and_the_old_one_still_decrypts() -> None:
    sealed = Secrets([OLD]).seal("word")
    rotated = Secrets.of(SecretsSettings(keys=SecretStr(f" {NEW} , {OLD}")))
    assert rotated.open(sealed) == "word"
    assert Secrets([NEW]).open(rotated.seal("word")) == "word"
    assert Secrets([NEW]).open(rotated.renew(sealed)) == "word"


@pytest.mark.parametrize("spoil", [lambda sealed: sealed[:-2] + "xx", lambda sealed: "", lambda sealed: "plain text"])
def test_what_was_altered_does_not_open(spoil: "type[str]") -> None:
    secrets = Secrets([NEW])
    with pytest.raises(SecretUnreadable):
        secrets.open(spoil(secrets.seal("word")))


def test_a_key_that_is_gone_is_told_as_it_is() -> None:
    with pytest.raises(SecretUnreadable, match="SECRETS_KEYS"):
        Secrets([NEW]).open(Secrets([OLD]).seal("word"))
