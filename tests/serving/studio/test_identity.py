"""RFC 8725's list of what goes wrong with tokens, each refused with 401."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from serving.refusal import Refused
from serving.studio.identity import MOST, Local, Token, sign_in
from vca.errors import SettingsError
from vca.service import SignInSettings, StudioSettings

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
CLAIMS = {"iss": "https://issuer", "aud": "vca", "sub": "ann"}


@pytest.fixture
def door(tmp_path: Path) -> Token:
    keys = [
        {**jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "one", "use": "sig"},
        {**jwt.algorithms.ECAlgorithm.to_jwk(CURVE.public_key(), as_dict=True), "kid": "two", "use": "sig"},
    ]
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": keys}))
    settings = SignInSettings(mode="jwt", issuer="https://issuer", audience="vca", keys=str(file))
    found = sign_in(settings)
    assert isinstance(found, Token)
    return found


def token(claims: dict[str, Any], *, key: Any = KEY, algorithm: str = "RS256", **header: Any) -> str:
    whole = {"exp": time.time() + 60, **CLAIMS, **claims}
    given = {name: value for name, value in whole.items() if value is not None}
    return "Bearer " + jwt.encode(given, key, algorithm=algorithm, headers={"kid": "one", **header})


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    return "Bearer " + b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def hs_signed_with_the_public_key() -> str:
    import hashlib
    import hmac

    text = forged({"alg": "HS256", "kid": "one"}, {**CLAIMS, "exp": time.time() + 60}).removeprefix("Bearer ")
    body = text.rpartition(".")[0]
    signature = hmac.new(PEM, body.encode(), hashlib.sha256).digest()
    return f"Bearer {body}." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


def test_a_token_that_holds_is_its_issuers_subject(door: Token) -> None:
    assert door.identity(token({})) == "https://issuer ann"
    assert door.identity(token({"aud": ["other", "vca"]})) == "https://issuer ann"
    assert door.identity(token({}, key=CURVE, algorithm="ES256", kid="two")) == "https://issuer ann"
    assert door.identity(token({"exp": time.time() - 5})) == "https://issuer ann"  # clocks differ


BAD = {
    "none at all": None,
    "another scheme": "Basic YW5uOmFubg==",
    "no token": "Bearer ",
    "rubbish": "Bearer x.y.z",
    "expired": token({"exp": time.time() - 3600}),
    "not yet": token({"nbf": time.time() + 3600}),
    "no end": token({"exp": None}),
    "other audience": token({"aud": "grafana"}),
    "no audience": token({"aud": None}),
    "other issuer": token({"iss": "https://issuer.evil"}),
    "no issuer": token({"iss": None}),
    "no subject": token({"sub": None}),
    "other key": token({}, key=OTHER),
    "unknown kid": token({}, kid="three"),
    "kid is a path": token({}, kid="../../jwks.json"),
    "kid is a number": forged({"alg": "RS256", "kid": 1}, CLAIMS),
    "alg none": forged({"alg": "none", "kid": "one"}, {**CLAIMS, "exp": time.time() + 60}),
    "alg None": forged({"alg": "None", "kid": "one"}, {**CLAIMS, "exp": time.time() + 60}),
    "HS with the public key": hs_signed_with_the_public_key(),
    "unknown extension": token({}, crit=["urn:x"], **{"urn:x": 1}),
    "key in the header": token({}, key=OTHER, jwk={"kty": "RSA"}, jku="https://evil/keys"),
    "endless": "Bearer " + "a" * (MOST + 1),
    "claims that are a list": forged({"alg": "RS256", "kid": "one"}, [1]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_every_other_token_is_refused(door: Token, name: str) -> None:
    with pytest.raises(Refused) as refused:
        door.identity(BAD[name])
    assert refused.value.status == 401


def test_local_is_one_person_and_stays_on_this_machine() -> None:
    assert Local().identity(None) == Local().identity("Bearer x")
    with pytest.raises(ValueError, match="everybody who reaches it"):
        StudioSettings(host="0.0.0.0")
    with pytest.raises(ValueError, match="issuer, audience, keys missing"):
        SignInSettings(mode="jwt")


def test_keys_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for text in (None, "{", '{"keys": []}', "[]"):
        file = tmp_path / "jwks.json"
        if text is not None:
            file.write_text(text)
        with pytest.raises(SettingsError, match="JWKS"):
            Token(SignInSettings(mode="jwt", issuer="i", audience="a", keys=str(file)))
