"""Findings: what each state of a file is called, in types, words and exit codes; and no bytes bring it down."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from repainted import png, repainted
from typer.testing import CliRunner

from vca.cli import app
from vca.data.images import BadImage
from vca.errors import ArtifactError, DataError, VcaError
from vca.provenance import verify as module
from vca.provenance.certificates import development_chain
from vca.provenance.credentials import Facts, Signer
from vca.provenance.keys import Keys
from vca.provenance.stamp import Stamp, release_mark
from vca.provenance.verify import Findings, in_words, verify


@pytest.fixture(scope="module")
def stamped(stamp: Stamp, facts: Facts, icons: list[np.ndarray]) -> bytes:
    """A picture as a server sends it."""
    return stamp.file(icons[11], facts=facts, encode=png)


@pytest.fixture(scope="module")
def files(stamped: bytes, keys: Keys, facts: Facts, icons: list[np.ndarray]) -> dict[str, bytes]:
    """One file for each thing that can have happened to a picture."""
    stranger = development_chain()
    forger = Signer(certificates=stranger.certificates, private_key=stranger.private_key)
    unmarked = Stamp.of(keys, sign=True, watermark=False).file(icons[11], facts=facts, encode=png)
    return {
        "as served": stamped,
        "saved again": saved(stamped, format="JPEG", quality=75),
        "changed": stamped.replace(facts.release.encode(), b"2026-11.4"),
        "repainted": repainted(stamped),
        "signed only": unmarked,
        "a stranger's": forger.sign(saved(unmarked, format="PNG"), facts=facts),
        "signed over": forger.sign(saved(stamped, format="PNG"), facts=facts),
        "nothing": saved(unmarked, format="PNG"),
    }


def saved(data: bytes, **how: object) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, **how)
    return file.getvalue()


def check(data: bytes, keys: Keys) -> Findings:
    return verify(data, watermark_key=keys.watermark_key, trust_anchors=keys.trust_anchors)


@pytest.mark.parametrize(
    ("name", "state", "watermark", "code", "verdict"),
    [
        ("as served", "trusted", "found", 0, "made by VCA, unchanged since"),
        ("saved again", "none", "found", 0, "made by VCA, perhaps changed since"),
        ("changed", "invalid", "not looked for", 4, "changed after signing"),
        ("repainted", "invalid", "found", 4, "changed after signing"),
        ("signed only", "trusted", "not found", 0, "made by VCA, unchanged since"),
        ("a stranger's", "untrusted", "not found", 1, "nothing proves that VCA made it"),
        ("signed over", "untrusted", "found", 0, "made by VCA, perhaps changed since"),
        ("nothing", "none", "not found", 1, "nothing proves that VCA made it"),
    ],
)
def test_what_happened_to_a_picture(
    name: str,
    state: str,
    watermark: str,
    code: int,
    verdict: str,
    files: dict[str, bytes],
    keys: Keys,
    facts: Facts,
    folder: Path,
    tmp_path: Path,
) -> None:
    findings = check(files[name], keys)
    assert (findings.credentials.state, findings.watermark) == (state, watermark)
    assert findings.payload == (release_mark(facts.release) if watermark == "found" else None)
    assert in_words(findings)[0] == verdict

    (tmp_path / "picture").write_bytes(files[name])
    said = CliRunner().invoke(app, ["verify", str(tmp_path / "picture"), "--keys", str(folder)])
    assert (said.exit_code, said.exception and said.exit_code) == (code, code or None)
    assert said.stdout.splitlines() == [
        f"{tmp_path / 'picture'}: {verdict}",
        *(f"  {line}" for line in in_words(findings)[1:]),
    ]
    told = CliRunner().invoke(app, ["verify", str(tmp_path / "picture"), "--keys", str(folder), "--json"])
    assert told.exit_code == code
    assert json.loads(told.stdout) == {
        "genuine": code == 0,
        "tampered": code == 4,
        **findings.model_dump(),
    }


def test_who_claims_without_proof_is_told_apart(files: dict[str, bytes], keys: Keys) -> None:
    facts = "release 2026-11.3, request 7f3e, model sd-2.1+adapter@1c9e"
    assert in_words(check(files["as served"], keys))[2] == f"it states: {facts}"
    assert in_words(check(files["a stranger's"], keys))[2] == f"it claims, which proves nothing: {facts}"


def test_without_keys_nothing_is_proven(stamped: bytes) -> None:
    findings = verify(stamped, watermark_key=None, trust_anchors=None)
    assert (findings.credentials.state, findings.watermark) == ("untrusted", "not looked for")
    assert not findings.genuine
    assert not findings.tampered


def test_another_key_finds_nothing(files: dict[str, bytes]) -> None:
    assert verify(files["saved again"], watermark_key=b"another", trust_anchors=None).watermark == "not found"


@pytest.mark.parametrize(("drawn", "shown"), [(64, 256), (64, 150), (512, 300), (512, 800), (1024, 700)])
def test_a_copy_of_another_size(drawn: int, shown: int, keys: Keys, facts: Facts, icons: list[np.ndarray]) -> None:
    pixels = np.asarray(Image.fromarray(icons[11]).resize((drawn, drawn), Image.Resampling.BICUBIC))
    marked = Stamp(signer=None, watermark_key=keys.watermark_key).file(pixels, facts=facts, encode=png)
    file = io.BytesIO()
    Image.open(io.BytesIO(marked)).resize((shown, shown), Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    assert check(file.getvalue(), keys).payload == release_mark(facts.release)


def test_too_large_a_picture(keys: Keys, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(BadImage, match="64x64 px"):
        check(files["nothing"], keys)
    assert check(files["as served"], keys).credentials.state == "trusted"  # the signature can be checked even so


def answers(data: bytes, keys: Keys) -> Findings | None:
    try:
        return check(data, keys)
    except BadImage:
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0 jumbc2pa"]),
    rest=st.binary(max_size=400),
)
def test_any_bytes(start: bytes, rest: bytes, keys: Keys) -> None:
    answers(start + rest, keys)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    end=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_a_damaged_file(
    kind: str, places: list[tuple[float, int]], end: float, stamped: bytes, signer: Signer, facts: Facts, keys: Keys
) -> None:
    """Never another exception; and never another picture, or another statement, that passes for signed."""
    data = stamped if kind == "PNG" else signer.sign(saved(stamped, format=kind), facts=facts)
    damaged = bytearray(data)
    for place, change in places:
        damaged[int(place * len(data))] ^= change
    findings = answers(bytes(damaged[: int(end * len(data))]), keys)
    if findings and findings.credentials.state == "trusted":
        assert findings.credentials.facts == facts
        if findings.watermark != "not looked for":
            np.testing.assert_array_equal(*(Image.open(io.BytesIO(file)) for file in (data, damaged)))


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (["verify", "{tmp}/none.png"], DataError, "none.png can't be read .No such file"),
        (["verify", "{tmp}"], DataError, "can't be read .Is a directory"),
        (["verify", "{tmp}/text.png"], DataError, "text.png can't be checked .+ give a whole PNG, JPEG or WebP file"),
        (["verify", "{tmp}/text.png", "--keys", "{tmp}"], ArtifactError, "holds none of"),
        (["keys", "{tmp}"], ArtifactError, "never overwritten"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], error: type[VcaError], told: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    run = CliRunner().invoke(app, [part.format(tmp=tmp_path) for part in arguments])
    assert isinstance(run.exception, error)
    with pytest.raises(error, match=told):
        raise run.exception


def test_a_newcomer_s_first_try(tmp_path: Path, icons: list[np.ndarray], facts: Facts) -> None:
    """As processes: keys, a picture, its check; a second look at the keys refuses."""

    def vca(*words: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("vca")
        return subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert vca("keys", "mine").returncode == 0
    refused = vca("keys", "mine")
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
    stamp = Stamp.of(Keys.load(tmp_path / "mine"), sign=True, watermark=True)
    (tmp_path / "cat.png").write_bytes(stamp.file(icons[0], facts=facts, encode=png))
    run = vca("verify", "cat.png", "--keys", "mine")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("cat.png: made by VCA, unchanged since\n  signed by VCA development")
