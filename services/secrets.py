"""Encryption at rest: what a row must not show."""

import base64
import hashlib
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from services.settings import SecretsSettings


class SecretUnreadable(Exception):
    """A secret was encrypted with a key that is not in SECRETS_KEYS any more."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


class Secrets:
    """Encrypts with the first of its keys and decrypts with any; authenticated, so nothing that was altered opens."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.ciphers = MultiFernet([Fernet(derived(key)) for key in keys])

    @classmethod
    def of(cls, settings: SecretsSettings) -> "Secrets":
        return cls(settings.each)

    def seal(self, text: str) -> str:
        return self.ciphers.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """Raises: SecretUnreadable."""
        try:
            return self.ciphers.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise SecretUnreadable from error

    def renew(self, sealed: str) -> str:
        """The same secret, encrypted with the first key. Raises: SecretUnreadable."""
        return self.seal(self.open(sealed))


def derived(key: str) -> bytes:
    """Fernet takes exactly 32 bytes; ours are random texts of any length."""
    return base64.urlsafe_b64encode(hashlib.sha256(b"longrun secrets\0" + key.encode()).digest())
