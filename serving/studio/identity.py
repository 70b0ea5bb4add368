"""Who is asking. Only a token whose signature, issuer, audience and times hold tells; headers that name users don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import jwt

from serving.refusal import Refused
from vca.errors import SettingsError
from vca.service import SignInSettings

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S = 30  # clocks differ
MOST = 16_000  # characters of a token


class SignIn(Protocol):
    def identity(self, authorization: str | None) -> str:
        """What the person is known by, for good: never shown, never stored in the clear. Raises Refused with 401."""


class Local:
    """One person, who sits at this machine."""

    def identity(self, authorization: str | None) -> str:
        return "local"


class Token:
    """OIDC tokens (RFC 7519, RFC 8725) in `Authorization: Bearer`, as a gateway's sign-in passes them on."""

    def __init__(self, settings: SignInSettings) -> None:
        """Raises SettingsError where the issuer's keys can't be read."""
        self.settings = settings
        self._keys = _Keys(settings.keys)

    def identity(self, authorization: str | None) -> str:
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token or len(token) > MOST:
            raise _unknown("sign in first: a token is missing (Authorization: Bearer)")
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:  # RFC 7515, 4.1.11: extensions that we don't know must not be passed over
                raise _unknown("the token asks for extensions that are not known here")
            claims = jwt.decode(
                token,
                self._keys.find(header.get("kid")),
                algorithms=list(ALGORITHMS),
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            raise _unknown(f"the token is not accepted ({type(error).__name__}); sign in again") from None
        return f"{claims['iss']} {claims['sub']}"


class _Keys:
    """The issuer's public keys by id: of a file, or of an address that is asked again when a new id turns up."""

    def __init__(self, place: str) -> None:
        self._client = jwt.PyJWKClient(place, timeout=3) if place.startswith("https://") else None
        self._file: jwt.PyJWKSet | None = None
        if self._client is None:
            try:
                self._file = jwt.PyJWKSet.from_dict(json.loads(Path(place).read_text(encoding="utf-8")))
            except (
                OSError,
                ValueError,
                AttributeError,
                jwt.PyJWTError,
            ) as error:  # AttributeError: JSON, but no object
                raise SettingsError(
                    f"studio.sign_in.keys {place} can't be read ({error}); give a JWKS file or an https address"
                ) from None

    def find(self, kid: object) -> jwt.PyJWK:
        if not isinstance(kid, str):
            raise KeyError("kid")
        if self._file is not None:
            return self._file[kid]
        assert self._client is not None
        return self._client.get_signing_key(kid)


def sign_in(settings: SignInSettings) -> SignIn:
    return Local() if settings.mode == "local" else Token(settings)


def _unknown(message: str) -> Refused:
    return Refused(message, status=401, code="not_signed_in")
