from pathlib import Path

import pytest

from vca.errors import ArtifactError
from vca.models import location


def folder(path: Path, *, weights: bytes = b"abc") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert location.resolve(str(folder(tmp_path / "m"))) == str(tmp_path / "m")


def test_a_hub_id_stays_an_id() -> None:
    assert location.resolve("Qwen/Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert location.digest("org/name").startswith("sha256:")


@pytest.mark.parametrize("scheme", ["s3", "gs", "oci"])
def test_a_bucket_lies_under_the_mount(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / scheme / "bucket" / "key" / "v1")
    monkeypatch.setenv("VCA_MODEL_MOUNT", str(tmp_path))
    assert location.resolve(f"{scheme}://bucket/key/v1") == str(tmp_path / scheme / "bucket" / "key" / "v1")
    with pytest.raises(ArtifactError, match="nothing is mounted at"):
        location.resolve(f"{scheme}://bucket/other")


def test_a_bucket_without_a_mount_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VCA_MODEL_MOUNT", raising=False)
    with pytest.raises(ArtifactError, match="VCA_MODEL_MOUNT"):
        location.resolve("s3://bucket/key")


@pytest.mark.parametrize("wrong", ["package:nothing_like_it", "/no/such/folder", "./nowhere", "ftp://host/x", ""])
def test_what_is_missing_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(ArtifactError) as error:
        location.resolve(wrong)
    assert "\n" not in str(error.value)
    assert repr(wrong) in str(error.value)


def test_shipped_weights_resolve_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "SHIPPED", tmp_path)
    folder(tmp_path / "small")
    assert location.resolve("package:small") == str(tmp_path / "small")


def test_the_digest_follows_the_weights_not_the_place_or_the_notes(tmp_path: Path) -> None:
    one, same, other = folder(tmp_path / "a"), folder(tmp_path / "b"), folder(tmp_path / "c", weights=b"abd")
    (same / "README.md").write_text("a note")
    assert location.digest(str(one)) == location.digest(str(same))
    assert location.digest(str(one)) != location.digest(str(other))


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no weights"):
        location.digest(str(tmp_path))
