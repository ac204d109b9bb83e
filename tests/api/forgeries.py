"""Credentials of those who must not get in, by what is wrong with them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt

from services import stream_tokens
from services.settings import Settings
from services.stream_tokens import StreamPass
from tests.issuer import Signer, claims, ec_signer, rsa_signer

Headers = dict[str, str]
LIES_OF_A_HEADER: dict[str, dict[str, Any]] = {
    "a path for a key": {"kid": "../../../../dev/null"},
    "SQL for a key": {"kid": "rsa-1' OR '1'='1"},
    "an address for a key": {"kid": "http://127.0.0.1:9/key"},
    "a key of another alphabet": {"kid": "ключ\u202e"},
    "an endless name of a key": {"kid": "k" * 10_000},
}
"""Of tokens that the issuer's own key has signed."""
KEYS_BROUGHT_ALONG: dict[str, dict[str, Any]] = {
    "a key of its own": {"jwk": rsa_signer("impostor").shown},
    "where its key is": {"jku": "http://127.0.0.1:9/jwks.json"},
    "where its certificate is": {"x5u": "http://127.0.0.1:9/cert.pem"},
    "its certificate": {"x5c": ["MIIB"]},
}
"""Of tokens that an impostor has signed."""
LIES_OF_CLAIMS: dict[str, dict[str, Any]] = {
    "other audience": {"aud": "stream"},
    "other audiences": {"aud": ["stream", "anon"]},
    "no audience": {"aud": None},
    "an empty audience": {"aud": []},
    "no expiry": {"exp": None},
    "an expiry that is no number": {"exp": "tomorrow"},
    "an expiry after the end of time": {"exp": 10**400},
    "not before tomorrow": {"nbf": datetime.now(UTC) + timedelta(days=1)},
    "issued tomorrow": {"iat": datetime.now(UTC) + timedelta(days=1)},
    "service role without a person": {"sub": None, "role": "service_role"},
    "a number for a person": {"sub": 7},
    "a list for a person": {"sub": [str(uuid4())]},
    "an object for a person": {"sub": {"id": str(uuid4())}},
    "a name for a person": {"sub": "ann"},
    "an empty person": {"sub": ""},
    "a person of another alphabet": {"sub": "\u0430nn\u202e\x00"},
}


def credentials(settings: Settings) -> dict[str, Headers]:
    """The headers of everybody who must be answered 401, everywhere alike."""
    bearers = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens(settings).items()}
    keys = {"made-up key": "pk_0000:sk_0000", "half a key": "pk_0000", "junk for a key": "x" * 40_000}
    return {
        "anonymous": {},
        "another scheme": {"Authorization": "Basic YW5uOmFubg=="},
        "no token": {"Authorization": "Bearer"},
        "a token in a cookie": {"Cookie": f"token={good(settings)}; access_token={good(settings)}"},
        "a token for a key": {"X-API-Key": good(settings)},
        "a forwarded user": {"X-Forwarded-User": str(uuid4()), "X-User-Id": str(uuid4())},
        **bearers,
        **{name: {"X-API-Key": key} for name, key in keys.items()},
    }


def good(settings: Settings) -> str:
    return jwt.encode(claims(), settings.auth.secrets[0], algorithm="HS256")


def tokens(settings: Settings) -> dict[str, str]:
    secret = settings.auth.secrets[0]
    signed = good(settings)
    run_pass = StreamPass(uuid4(), uuid4(), uuid4())
    return {
        "expired": jwt.encode(claims(exp=claims()["iat"] - timedelta(hours=1)), secret, algorithm="HS256"),
        "alg none": jwt.encode(claims(), "", algorithm="none"),
        "alg None": with_header(signed, {"alg": "None", "typ": "JWT"}, cut=True),
        "without its signature": signed.rpartition(".")[0] + ".",
        "an algorithm that is not configured": jwt.encode(claims(), secret + "x" * 64, algorithm="HS512"),
        "signed with the RSA public key": signed_with_public_key(rsa_signer()),
        "signed with the EC public key": signed_with_public_key(ec_signer()),
        "other secret": jwt.encode(claims(), "another-secret-of-thirty-two-bytes-or-more", algorithm="HS256"),
        "other issuer's key": rsa_signer("impostor").sign({"kid": "rsa-1"}),
        "a stream's token": stream_tokens.sign(settings, run_pass),
        "a token in a token": of_bytes(secret, signed.encode(), {"cty": "JWT"}),
        "a list of claims": of_bytes(secret, json.dumps([1]).encode()),
        "claims that are no JSON": of_bytes(secret, b"{"),
        "claims nested too deeply": of_bytes(secret, b"[" * 10_000),
        "must understand what nobody knows": rsa_signer().sign({"crit": ["x"], "x": 1}),
        "huge": jwt.encode(claims(note="x" * 40_000), secret, algorithm="HS256"),
        "junk": "junk",
        "dots": "..",
        **{name: rsa_signer().sign(lies) for name, lies in LIES_OF_A_HEADER.items()},
        **{name: rsa_signer("impostor").sign({"kid": "rsa-1", **key}) for name, key in KEYS_BROUGHT_ALONG.items()},
        **{name: of_claims(secret, lies) for name, lies in LIES_OF_CLAIMS.items()},
    }


def signed_with_public_key(signer: Signer) -> str:
    """As if the public key, which everybody knows, were the secret of HS256; PyJWT itself would refuse to."""
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    unsigned = jwt.encode(claims(), "x" * 32, algorithm="HS256", headers={"kid": signer.key_id}).rpartition(".")[0]
    return f"{unsigned}.{jwt.utils.base64url_encode(algorithm.sign(unsigned.encode(), signer.public_pem)).decode()}"


def of_claims(secret: str, lies: dict[str, Any]) -> str:
    """Claims that PyJWT itself would not write."""
    said = {
        name: int(value.timestamp()) if isinstance(value, datetime) else value for name, value in claims(**lies).items()
    }
    return of_bytes(secret, json.dumps(said).encode())


def of_bytes(secret: str, payload: bytes, header: dict[str, Any] | None = None) -> str:
    return jwt.api_jws.encode(payload, secret, algorithm="HS256", headers=header)


def with_header(token: str, header: dict[str, Any], *, cut: bool) -> str:
    _, payload, signature = token.split(".")
    first = jwt.utils.base64url_encode(json.dumps(header).encode()).decode()
    return f"{first}.{payload}.{'' if cut else signature}"
