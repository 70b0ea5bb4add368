from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.errors import ArtifactError
from vca.feedback.vault import Vault

VAULT = Vault(b"k" * 32)


@given(text=st.text(st.characters(codec=None, exclude_categories=())), row=st.uuids())
def test_what_is_sealed_opens_for_its_row_only(text: str, row: object) -> None:
    key = VAULT.person("ann", VAULT.new_person("ann"))
    sealed = key.seal(text, row=str(row))
    assert key.open(sealed, row=str(row)) == text
    with pytest.raises(ArtifactError, match="does not open"):
        key.open(sealed, row="another")


def test_keys_belong_to_their_person_and_master() -> None:
    wrapped = VAULT.new_person("ann")
    with pytest.raises(ArtifactError):
        VAULT.person("bob", wrapped)
    with pytest.raises(ArtifactError):
        Vault(b"x" * 32).person("ann", wrapped)
    other = VAULT.person("bob", VAULT.new_person("bob"))
    with pytest.raises(ArtifactError):
        other.open(VAULT.person("ann", wrapped).seal("secret", row="r"), row="r")


@given(st.binary(max_size=80))
def test_rubbish_does_not_open(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        VAULT.person("ann", data)


def test_a_key_is_made_once_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "master.key"
    with pytest.raises(ArtifactError, match="bring the key back"):
        Vault.load(file, create=False)

    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(Vault.load(file, create=True).hmac("x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(made)) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in file.parent.iterdir()] == ["master.key"]


@pytest.mark.parametrize("text", ["", "xyz", "00" * 31, "00" * 33])
def test_a_damaged_key_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "master.key"
    file.write_text(text)
    with pytest.raises(ArtifactError, match="64 hexadecimal digits"):
        Vault.load(file, create=True)
