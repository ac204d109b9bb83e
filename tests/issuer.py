"""An issuer of access tokens: it shows its public keys over real HTTP, and signs as it or an impostor would."""

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import uuid4

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from services.settings import AuthSettings

ISSUER = "https://issuer.example/auth/v1"


@dataclass(frozen=True)
class Signer:
    """A key pair, and the algorithm it signs with."""

    key_id: str
    algorithm: str
    private: Any

    @property
    def shown(self) -> dict[str, Any]:
        """The public half, as a JWKS document shows it."""
        family: Any = RSAAlgorithm if self.algorithm == "RS256" else ECAlgorithm
        jwk: dict[str, Any] = family.to_jwk(self.private.public_key(), as_dict=True)
        return {**jwk, "kid": self.key_id, "use": "sig", "alg": self.algorithm}

    @property
    def public_pem(self) -> bytes:
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def sign(self, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        return jwt.encode(
            claims(**changes), self.private, algorithm=self.algorithm, headers={"kid": self.key_id, **(headers or {})}
        )


@cache
def rsa_signer(key_id: str = "rsa-1", bits: int = 2048) -> Signer:
    """One per id in a run of the tests: a key takes a while to find."""
    return Signer(key_id, "RS256", rsa.generate_private_key(65537, bits))


@cache
def ec_signer(key_id: str = "ec-1") -> Signer:
    return Signer(key_id, "ES256", ec.generate_private_key(ec.SECP256R1()))


def claims(**changes: Any) -> dict[str, Any]:
    """What Supabase puts into a token; a change to None leaves a claim out."""
    now = datetime.now(UTC)
    said = {
        "sub": str(uuid4()),
        "aud": "authenticated",
        "role": "authenticated",
        "iss": ISSUER,
        "iat": now,
        "exp": now + timedelta(hours=1),
        "session_id": str(uuid4()),
        "email": "ann@example.org",
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "is_anonymous": False,
        **changes,
    }
    return {name: value for name, value in said.items() if value is not None}


@dataclass
class Issuer:
    """`status` is what it answers; `body` replaces the document; `asked` counts the requests."""

    signers: list[Signer] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None
    asked: int = 0
    hold: threading.Event | None = None
    server: ThreadingHTTPServer = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/.well-known/jwks.json"

    @property
    def document(self) -> bytes:
        return orjson.dumps({"keys": [signer.shown for signer in self.signers]}) if self.body is None else self.body

    def settings(self, **changes: Any) -> AuthSettings:
        fields = {"algorithms": ("RS256", "ES256"), "jwks_url": self.url, "issuer": ISSUER}
        return AuthSettings.model_validate({**fields, **changes})

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold:
            self.hold.set()
        self.server.shutdown()
        self.server.server_close()


def handler_of(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            if issuer.hold:
                issuer.hold.wait(30)
            body = issuer.document
            self.send_response(issuer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a hung-up client is part of the tests."""

    return Handler
