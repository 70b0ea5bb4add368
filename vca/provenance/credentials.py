"""Content Credentials (C2PA): a signed statement inside the picture's file of who made it, and how.

Specification: https://spec.c2pa.org, here through c2pa-python. Nothing asks the network: no timestamps, no revocation
lists, no manifests that lie elsewhere. c2pa loads where it is used first: it takes longer than the whole command line.
"""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from vca import __version__
from vca.data.images import FORMATS, NO_PICTURE, BadImage
from vca.errors import ArtifactError

# No space is allowed, so that neither a prompt nor a person's words can end up in a picture that travels.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/@+-]{1,200}$")]
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# What signers' certificates may be for, by C2PA's profile; the library's own default knows the first one only.
PURPOSES = {
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "documentSigning": "1.3.6.1.5.5.7.3.36",
    "c2pa-kp-claimSigning": "1.3.6.1.4.1.62558.2.1",
}
State = Literal["none", "trusted", "untrusted", "invalid"]


class Facts(BaseModel):
    """What a picture states of itself: words without spaces, up to 200 characters."""

    model_config = ConfigDict(frozen=True)

    release: Word
    request_id: Word
    model: Word


class Credentials(BaseModel):
    """What a file's credentials are worth.

    state: "none"; "trusted" (unchanged since an issuer that counts signed it); "untrusted" (unchanged since somebody
    signed it, which anyone can); "invalid" (changed afterwards, or broken). reason: C2PA's codes for what failed.
    issuer: the organisation that the certificate names. facts: None where the file states none of VCA's.
    """

    model_config = ConfigDict(frozen=True)

    state: State
    reason: str = ""
    issuer: str = ""
    facts: Facts | None = None


class Signer:
    """Signs pictures. Threads may share one; a forked process needs its own."""

    def __init__(self, *, certificates: bytes, private_key: bytes) -> None:
        """certificates: PEM, the signer's first. private_key: PEM, ES256.

        Errors: ArtifactError for keys that don't fit each other or C2PA's profile, found by signing a picture.
        """
        import c2pa

        settings = {
            "builder": {"thumbnail": {"enabled": False}},
            "verify": {"verify_after_sign": False, "remote_manifest_fetch": False},
        }
        try:
            info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, certificates, private_key, None)
            self._context = c2pa.Context.from_dict(settings, signer=c2pa.Signer.from_info(info))
            tried = read(self.sign(_blank(), facts=Facts(release="-", request_id="-", model="-")), trust_anchors=None)
        except (c2pa.C2paError, BadImage) as error:  # there is nothing wrong with the picture
            raise ArtifactError(f"the signing keys can't be used ({error}); {_WANTED}") from None
        if tried.reason != "signingCredential.untrusted":  # there are no anchors here to trust it by
            raise ArtifactError(f"the signing keys can't be used ({tried.reason}); {_WANTED}")

    def sign(self, data: bytes, *, facts: Facts) -> bytes:
        """The PNG, JPEG or WebP file with credentials; its pixels stay as they are.

        Errors: BadImage; ArtifactError once the certificate has run out.
        """
        import c2pa

        kind = _mime_type(data)
        signed = io.BytesIO()
        try:
            c2pa.Builder(_manifest(facts), context=self._context).sign(kind, io.BytesIO(data), signed)
        except c2pa.C2paError.Signature as error:
            raise ArtifactError(f"the signing keys can't be used ({error}); {_WANTED}") from None
        except c2pa.C2paError as error:
            raise BadImage("broken_image", f"{error}"[:200]) from None
        return signed.getvalue()


def read(data: bytes, *, trust_anchors: bytes | None) -> Credentials:
    """Check a file's credentials, whatever its bytes are. trust_anchors: PEM of the issuers that count; None: none do.

    Errors: ArtifactError for anchors that are no certificates.
    """
    import c2pa

    context = _reading(trust_anchors)
    try:
        report = json.loads(c2pa.Reader(None, io.BytesIO(data), context=context).json())
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported, c2pa.C2paError.RemoteManifest):
        return Credentials(state="none")
    except c2pa.C2paError as error:
        if b"c2pa" not in data:  # the name of the box that every credential lies in: this file is odd in another way
            return Credentials(state="none")
        return Credentials(state="invalid", reason=_printable(str(error)))
    manifest = report["manifests"].get(report["active_manifest"], {})  # not there where it's too broken to show
    codes = [failure["code"] for failure in report["validation_results"]["activeManifest"]["failure"]]
    stated = [entry.get("data") for entry in manifest.get("assertions", ()) if entry["label"] == "vca"]
    try:
        facts = Facts.model_validate(stated[0]) if stated else None
    except ValidationError:  # somebody else's idea of "vca"
        facts = None
    return Credentials(
        state=_state(report["validation_state"], codes),
        reason=_printable(", ".join(codes)),
        issuer=_printable(manifest.get("signature_info", {}).get("issuer") or ""),
        facts=facts,
    )


_WANTED = (
    "give a PEM chain, the signer's certificate first, and its ES256 key; what a certificate needs: docs/provenance.md"
)


def _state(validation: str, codes: list[str]) -> State:
    if validation == "Trusted":
        return "trusted"
    # Every other code is about the contents; these are about who signed: unknown, expired, not for this purpose.
    if codes and all(code.startswith("signingCredential.") for code in codes):
        return "untrusted"
    return "invalid"


def _manifest(facts: Facts) -> dict[str, Any]:
    created = {"action": "c2pa.created", "digitalSourceType": GENERATED}
    return {
        "claim_generator_info": [{"name": "VCA", "version": __version__}],
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [created]}},
            {"label": "vca", "data": facts.model_dump()},
        ],
    }


@lru_cache(maxsize=4)
def _reading(trust_anchors: bytes | None) -> Any:
    import c2pa

    trust = {"trust_config": "\n".join(PURPOSES.values())}
    try:
        if trust_anchors is not None:
            trust["trust_anchors"] = trust_anchors.decode("ascii")
        return c2pa.Context.from_dict({"trust": trust, "verify": {"remote_manifest_fetch": False}})
    except (c2pa.C2paError, UnicodeDecodeError) as error:
        raise ArtifactError(f"the trust anchors are no certificates ({error}); give them as PEM") from None


def _mime_type(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return f"image/{(image.format or '').lower()}"
    except UnidentifiedImageError:
        raise BadImage("broken_image", NO_PICTURE) from None
    except Exception as error:  # Pillow fails in a dozen types
        raise BadImage("broken_image", f"{type(error).__name__}: {error}"[:200]) from None


def _blank() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    return out.getvalue()


def _printable(text: str) -> str:
    """Strangers wrote it, and it goes to people's terminals."""
    return "".join(letter for letter in text if letter.isprintable())[:200]
