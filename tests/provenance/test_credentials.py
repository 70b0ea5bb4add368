"""Content Credentials: what is signed is read back, what is changed is noticed, and bad keys are refused at once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image
from pydantic import ValidationError
from repainted import repainted

from vca import __version__
from vca.data.images import BadImage
from vca.errors import ArtifactError
from vca.provenance import certificates, credentials
from vca.provenance.certificates import development_chain
from vca.provenance.credentials import PURPOSES, Facts, Signer, read
from vca.provenance.keys import Keys

FORMATS = ["PNG", "JPEG", "WEBP"]


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_signed_is_read_back(
    kind: str, signer: Signer, keys: Keys, facts: Facts, icons: list[np.ndarray]
) -> None:
    data = encoded(icons[3], kind)
    signed = signer.sign(data, facts=facts)
    found = read(signed, trust_anchors=keys.trust_anchors)
    assert found.state == "trusted"
    assert found.reason == ""
    assert found.facts == facts
    assert found.issuer == "VCA development, not to be trusted"
    np.testing.assert_array_equal(Image.open(io.BytesIO(signed)), Image.open(io.BytesIO(data)))
    assert len(signed) - len(data) < 4000  # no thumbnail


def test_the_statement_says_that_a_model_made_it_and_nothing_of_people(
    signer: Signer, facts: Facts, icons: list[np.ndarray]
) -> None:
    signed = signer.sign(encoded(icons[0], "PNG"), facts=facts)
    manifest = c2pa.Reader("image/png", io.BytesIO(signed)).get_active_manifest()
    claimed = manifest["claim_generator_info"][0]
    assert (claimed["name"], claimed["version"]) == ("VCA", __version__)
    stated = {entry["label"]: entry["data"] for entry in manifest["assertions"]}
    assert stated == {
        "c2pa.actions.v2": {"actions": [{"action": "c2pa.created", "digitalSourceType": credentials.GENERATED}]},
        "vca": {"release": facts.release, "request_id": facts.request_id, "model": facts.model},
    }
    assert "thumbnail" not in manifest


@pytest.mark.parametrize("word", ["a cat on a mat", "", "x" * 201, "\x1b[31m", "Zoë", "a\n"])
def test_facts_are_words_and_have_no_room_for_prompts(word: str) -> None:
    with pytest.raises(ValidationError):
        Facts(release="r", request_id=word, model="m")


@pytest.mark.parametrize("kind", FORMATS)
def test_one_byte_of_the_picture(kind: str, signer: Signer, keys: Keys, facts: Facts, icons: list[np.ndarray]) -> None:
    data = encoded(icons[3], kind)
    signed = signer.sign(data, facts=facts)
    found = read(flipped(signed, signed.index(data[-60:-20]) + 10), trust_anchors=keys.trust_anchors)
    assert (found.state, found.reason) == ("invalid", "assertion.dataHash.mismatch")


def test_one_pixel_of_a_whole_png(signer: Signer, keys: Keys, facts: Facts, icons: list[np.ndarray]) -> None:
    changed = repainted(signer.sign(encoded(icons[3], "PNG"), facts=facts))
    Image.open(io.BytesIO(changed)).load()
    found = read(changed, trust_anchors=keys.trust_anchors)
    assert (found.state, found.reason) == ("invalid", "assertion.dataHash.mismatch")


def test_another_release_written_into_the_statement(
    signer: Signer, keys: Keys, facts: Facts, icons: list[np.ndarray]
) -> None:
    signed = signer.sign(encoded(icons[3], "PNG"), facts=facts)
    found = read(signed.replace(b"2026-11.3", b"2026-11.4"), trust_anchors=keys.trust_anchors)
    assert (found.state, found.reason) == ("invalid", "assertion.hashedURI.mismatch")


def test_a_stranger_signs_the_same_words(keys: Keys, facts: Facts, icons: list[np.ndarray]) -> None:
    stranger = development_chain()
    forger = Signer(certificates=stranger.certificates, private_key=stranger.private_key)
    signed = forger.sign(encoded(icons[3], "PNG"), facts=facts)
    for anchors in (keys.trust_anchors, None):
        found = read(signed, trust_anchors=anchors)
        assert (found.state, found.reason) == ("untrusted", "signingCredential.untrusted")
    assert read(signed, trust_anchors=stranger.anchors).state == "trusted"


def test_a_certificate_that_ran_out_is_no_sign_of_a_change(
    facts: Facts, icons: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "VALID", timedelta(seconds=2))
    chain = development_chain()
    signer = Signer(certificates=chain.certificates, private_key=chain.private_key)
    signed = signer.sign(encoded(icons[3], "PNG"), facts=facts)
    assert read(signed, trust_anchors=chain.anchors).state == "trusted"
    time.sleep(3.1)  # certificates count in seconds
    found = read(signed, trust_anchors=chain.anchors)
    assert found.state == "untrusted"
    assert "signingCredential.expired" in found.reason
    with pytest.raises(ArtifactError, match="not valid at time of signing"):
        signer.sign(encoded(icons[3], "PNG"), facts=facts)
    with pytest.raises(ArtifactError, match="not valid at time of signing"):
        Signer(certificates=chain.certificates, private_key=chain.private_key)


def test_a_stranger_s_changed_picture_was_changed_first_of_all(
    signer: Signer, facts: Facts, icons: list[np.ndarray]
) -> None:
    found = read(repainted(signer.sign(encoded(icons[3], "PNG"), facts=facts)), trust_anchors=None)
    assert (found.state, found.reason) == ("invalid", "signingCredential.untrusted, assertion.dataHash.mismatch")


@pytest.mark.parametrize(
    ("validation", "codes", "state"),
    [
        ("Trusted", [], "trusted"),
        ("Valid", ["signingCredential.untrusted"], "untrusted"),
        ("Invalid", ["signingCredential.untrusted", "signingCredential.expired"], "untrusted"),
        ("Invalid", ["signingCredential.untrusted", "claimSignature.mismatch"], "invalid"),
        ("Invalid", [], "invalid"),  # the failure is in a manifest that this one builds on
    ],
)
def test_states(validation: str, codes: list[str], state: str) -> None:
    assert credentials._state(validation, codes) == state


def test_credentials_too_broken_to_read_count_as_changed_and_an_odd_file_doesn_t(
    signer: Signer, keys: Keys, facts: Facts, icons: list[np.ndarray]
) -> None:
    plain = encoded(icons[3], "PNG")
    broken = signer.sign(plain, facts=facts).replace(b"instanceID", b"instanceIE")
    found = read(broken, trust_anchors=keys.trust_anchors)
    assert found.state == "invalid"
    assert found.reason
    assert read(plain[:-200], trust_anchors=keys.trust_anchors).state == "none"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_purpose_that_the_profile_allows(
    purpose: str, facts: Facts, icons: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public authorities issue signers' certificates for C2PA's own purpose."""
    monkeypatch.setattr(ExtendedKeyUsageOID, "EMAIL_PROTECTION", x509.ObjectIdentifier(PURPOSES[purpose]))
    chain = development_chain()
    signer = Signer(certificates=chain.certificates, private_key=chain.private_key)
    signed = signer.sign(encoded(icons[3], "PNG"), facts=facts)
    assert read(signed, trust_anchors=chain.anchors).state == "trusted"


def test_keys_that_cannot_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    good, other = development_chain(), development_chain()
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    issuer_first = good.anchors + good.certificates
    monkeypatch.setattr(ExtendedKeyUsageOID, "EMAIL_PROTECTION", ExtendedKeyUsageOID.SERVER_AUTH)
    for_web_servers = development_chain()
    for certificate, key in [
        (good.certificates, other.private_key),
        (good.certificates, rsa_key),
        (good.certificates, b""),
        (good.certificates, b"\0\xff"),
        (good.private_key, good.private_key),
        (b"", good.private_key),
        (issuer_first, good.private_key),
        (for_web_servers.certificates, for_web_servers.private_key),
    ]:
        with pytest.raises(ArtifactError, match=r"the signing keys can't be used \(.+\); give a PEM chain"):
            Signer(certificates=certificate, private_key=key)


@pytest.mark.parametrize("anchors", [b"", b"rubbish", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_anchors_that_are_no_certificates(anchors: bytes) -> None:
    with pytest.raises(ArtifactError, match="the trust anchors are no certificates"):
        read(b"", trust_anchors=anchors)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_only_pictures_are_signed(data: bytes, signer: Signer, facts: Facts) -> None:
    with pytest.raises(BadImage, match="not a PNG, JPEG or WebP file"):
        signer.sign(data, facts=facts)


def test_a_picture_cut_short_is_not_signed(signer: Signer, facts: Facts, icons: list[np.ndarray]) -> None:
    with pytest.raises(BadImage):
        signer.sign(encoded(icons[3], "PNG")[:-200], facts=facts)


@pytest.mark.parametrize("data", [{"release": 7}, {}, {"release": "r", "request_id": "\x1b[2J", "model": "m"}])
def test_another_s_idea_of_our_statement(
    data: dict[str, object],
    signer: Signer,
    keys: Keys,
    facts: Facts,
    icons: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = credentials._manifest(facts)["assertions"][0]
    manifest = {"assertions": [ours, {"label": "vca", "data": data}]}
    monkeypatch.setattr(credentials, "_manifest", lambda _: manifest)
    found = read(signer.sign(encoded(icons[3], "PNG"), facts=facts), trust_anchors=keys.trust_anchors)
    assert (found.state, found.facts) == ("trusted", None)


def test_nothing_that_a_terminal_would_obey() -> None:
    assert credentials._printable("Acme\x1b[2J\r\n\u202eCorp" + "!" * 999) == "Acme[2JCorp" + "!" * 189


def test_threads_share_a_signer(signer: Signer, keys: Keys, icons: list[np.ndarray]) -> None:
    data = encoded(icons[3], "PNG")

    def sign(number: int) -> bool:
        facts = Facts(release="r", request_id=str(number), model="m")
        found = read(signer.sign(data, facts=facts), trust_anchors=keys.trust_anchors)
        return found.state == "trusted" and found.facts == facts

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(sign, range(80)))


def test_the_library_loads_where_it_is_used() -> None:
    code = "import sys, vca.provenance.stamp, vca.provenance.verify; print(json.dumps('c2pa' in sys.modules))"
    run = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) is False
