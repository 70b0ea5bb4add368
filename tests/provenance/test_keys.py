"""The keys folder: whole, private, never overwritten, and refused in one line where it can't be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vca.errors import ArtifactError
from vca.provenance import keys as module
from vca.provenance.credentials import Signer
from vca.provenance.keys import FILES, PRIVATE_KEY, TRUST_ANCHORS, WATERMARK_KEY, Keys, create


def test_new_keys_work_and_are_the_owner_s_alone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {(folder / name).stat().st_mode & 0o777 for name in FILES} == {0o600}
    keys = Keys.load(folder)
    Signer(certificates=keys.certificates, private_key=keys.private_key)
    assert len(keys.watermark_key) == 32
    assert keys.trust_anchors in keys.certificates


def test_no_two_are_alike(folder: Path, tmp_path: Path) -> None:
    create(tmp_path / "deep" / "other")
    assert all((folder / name).read_bytes() != (tmp_path / "deep" / "other" / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("there", ["file", "empty folder", "keys"])
def test_nothing_is_overwritten(there: str, tmp_path: Path) -> None:
    place = tmp_path / "keys"
    if there == "file":
        place.write_text("precious")
    elif there == "keys":
        create(place)
    else:
        place.mkdir()
    before = [(path, path.is_file() and path.read_bytes()) for path in sorted(tmp_path.rglob("*"))]
    with pytest.raises(ArtifactError, match="never overwritten, so choose another folder"):
        create(place)
    assert [(path, path.is_file() and path.read_bytes()) for path in sorted(tmp_path.rglob("*"))] == before


def test_cut_off_half_way_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(module.os, "fsync", failing)
    with pytest.raises(ArtifactError, match=r"can't be made \(Input/output error\)"):
        create(tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file/keys can't be made \(File exists\); choose another folder"):
        create(tmp_path / "file" / "keys")


def test_who_only_checks_needs_no_private_key(folder: Path, tmp_path: Path) -> None:
    for name in (TRUST_ANCHORS, WATERMARK_KEY):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    keys = Keys.load(tmp_path)
    assert keys.private_key is keys.certificates is None
    assert keys.watermark_key == Keys.load(folder).watermark_key


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_keys(made: bool, tmp_path: Path) -> None:
    place = tmp_path / "keys"
    if made:
        place.mkdir()
    with pytest.raises(ArtifactError, match=rf"holds none of certificates.pem, .*: vca keys {place}"):
        Keys.load(place)


@pytest.mark.parametrize("text", [b"", b"secret", b"ab" * 31, b"ab" * 33, b"\xff" * 64, b"zz" * 32])
def test_a_watermark_key_that_is_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / WATERMARK_KEY).write_bytes(text)
    with pytest.raises(ArtifactError, match=f"{WATERMARK_KEY} is no watermark key; it must hold 64 hex"):
        Keys.load(tmp_path)


def test_a_file_that_can_t_be_read(tmp_path: Path) -> None:
    (tmp_path / PRIVATE_KEY).mkdir()
    with pytest.raises(ArtifactError, match=rf"{PRIVATE_KEY} can't be read \(Is a directory\)"):
        Keys.load(tmp_path)


def test_secrets_are_not_printed(keys: Keys) -> None:
    assert keys.watermark_key.hex() not in repr(keys)
    assert "PRIVATE" not in repr(keys)
    assert repr(keys.watermark_key) not in repr(keys)


def test_links_as_kubernetes_mounts_them(folder: Path, tmp_path: Path) -> None:
    for name in FILES:
        os.symlink(folder / name, tmp_path / name)
    assert Keys.load(tmp_path) == Keys.load(folder)
