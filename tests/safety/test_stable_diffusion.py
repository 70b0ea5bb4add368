"""The checker of Stable Diffusion 1: the real classes with a tiny network of random weights, against their own rule."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vca.errors import ArtifactError
from vca.safety.checker import Checker, load
from vca.safety.classifiers import StableDiffusion
from vca.safety.settings import SafetySettings

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under which some random pictures are safe and some aren't, some with special care and some without."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in (network.concept_embeds, network.special_care_embeds):
            parameter.copy_(torch.randn_like(parameter))
        network.visual_projection.weight.copy_(torch.randn_like(network.visual_projection.weight))
        network.concept_embeds_weights.fill_(0.70)
        network.special_care_embeds_weights.fill_(0.40)
    path = tmp_path_factory.mktemp("checker")
    network.save_pretrained(path)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(path)
    return path


def pictures(count: int) -> list[np.ndarray]:
    """Random colours in random 4x4 mosaics."""
    rng = np.random.default_rng(0)
    return [np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(count)]


def loaded(folder: Path) -> Checker:
    return load(SafetySettings(classifier="stable_diffusion", location=str(folder)))


def test_verdicts_are_those_of_diffusers(folder: Path) -> None:
    images = pictures(64)
    network = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    _, unsafe = network(clip_input=pixels, images=[image.copy() for image in images])
    verdicts = loaded(folder).check_images(images)
    sure = [abs(verdict.score or 0) > 0.001 for verdict in verdicts]  # diffusers rounds its scores to 0.001
    assert sum(sure) > 50
    assert [not v.allowed for v, s in zip(verdicts, sure, strict=True) if s] == [
        u for u, s in zip(unsafe, sure, strict=True) if s
    ]
    assert 5 < sum(unsafe) < 59


def test_special_care_makes_it_stricter(folder: Path, tmp_path: Path) -> None:
    images = pictures(16)
    changed = {"always": -2.0, "never": 2.0}
    scores = {}
    for name, threshold in changed.items():
        shutil.copytree(folder, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        weights["special_care_embeds_weights"].fill_(threshold)
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        scores[name] = np.array(StableDiffusion(location=str(tmp_path / name)).scores(images))
    assert scores["always"] - scores["never"] == pytest.approx(np.full(16, 0.01), abs=1e-5)


def test_missing_files_and_weights_fail_the_start(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copytree(folder, tmp_path / file)
        (tmp_path / file / file).unlink()
        with pytest.raises(ArtifactError, match="classifier 'stable_diffusion' can't be loaded"):
            loaded(tmp_path / file)
    with pytest.raises(ArtifactError, match=r"s3://bucket/key.*VCA_MODEL_MOUNT"):
        load(SafetySettings(classifier="stable_diffusion", location="s3://bucket/key"))


def test_pickles_are_not_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "copy/pytorch_model.bin")
    (tmp_path / "copy/model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="can't be loaded"):
        loaded(tmp_path / "copy")


def test_truncated_weights_fail_the_start(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"can't be loaded .*fetch .*copy again"):
        loaded(tmp_path / "copy")


def test_weights_that_a_loader_would_draw_at_random_fail_the_start(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["concept_embeds"]
    save_file(weights, tmp_path / "copy/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="weights are missing: concept_embeds"):
        loaded(tmp_path / "copy")


def test_weights_that_are_no_numbers_fail_the_start(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"].fill_(float("nan"))
    save_file(weights, tmp_path / "copy/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="gives no judgement"):
        loaded(tmp_path / "copy")


def test_the_pictures_are_left_as_they_are(folder: Path) -> None:
    images = pictures(64)  # diffusers' own call blackens the unsafe ones
    loaded(folder).check_images(images)
    assert all(np.array_equal(image, same) for image, same in zip(images, pictures(64), strict=True))
