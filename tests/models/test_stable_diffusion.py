"""Loading a pipeline, its LoRA, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_pipeline import build_tiny_pipeline

from vca.errors import ArtifactError
from vca.models.stable_diffusion import (
    ADAPTER_FILE,
    DECODED_AT_ONCE,
    WEIGHTS_FILE,
    StableDiffusion,
    load_adapter,
    load_pipeline,
    save_adapter,
    set_adapter_scale,
)


def output(pipeline: StableDiffusion) -> torch.Tensor:
    latents = torch.randn(2, *pipeline.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pipeline.predict(latents, torch.tensor([500, 20]), pipeline.encode_prompts(["a cat", "a dog"]))


def train_a_little(pipeline: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in pipeline.lora().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def trained(tiny: StableDiffusion, tmp_path: Path) -> Path:
    tiny.attach_lora(rank=4, alpha=4)
    train_a_little(tiny)
    save_adapter(tiny, tmp_path / "policy", weights=tiny.lora(), facts={"watermark": "w1"})
    return tmp_path / "policy"


def test_lora_sits_on_every_attention_projection_and_only_there(tiny: StableDiffusion) -> None:
    before = output(tiny)
    tiny.attach_lora(rank=4, alpha=4)
    lora = tiny.lora()
    blocks = sum(1 for name, _ in tiny.unet.named_modules() if name.endswith(("attn1", "attn2")))
    assert len(lora) == blocks * 4 * 2
    assert all(p.requires_grad and p.dtype == torch.float32 for p in lora.values())
    assert sum(p.requires_grad for p in tiny.unet.parameters()) == len(lora)
    assert torch.equal(before, output(tiny))


def test_lora_stays_float32_on_a_bfloat16_base(tiny_folder: Path) -> None:
    pipeline = load_pipeline(str(tiny_folder), dtype=torch.bfloat16)
    pipeline.attach_lora(rank=4, alpha=4)
    train_a_little(pipeline)
    assert {p.dtype for p in pipeline.lora().values()} == {torch.float32}
    assert pipeline.unet.conv_in.weight.dtype == torch.bfloat16
    assert output(pipeline).dtype == torch.float32


def test_saved_adapter_comes_back_with_its_scale(tiny: StableDiffusion, trained: Path, tiny_folder: Path) -> None:
    as_trained = output(tiny)
    fresh = load_pipeline(str(tiny_folder))
    base = output(fresh)
    card = load_adapter(fresh, trained)
    assert card["watermark"] == "w1"
    assert torch.equal(output(fresh), as_trained)
    with fresh.adapter_off():
        assert torch.equal(output(fresh), base)
    assert torch.equal(output(fresh), as_trained)

    set_adapter_scale(trained, scale=0.35)
    assert load_adapter(fresh, trained)["scale"] == 0.35
    weaker = output(fresh)
    assert 0 < (weaker - base).norm() < (as_trained - base).norm()
    load_adapter(fresh, trained, scale=0)
    assert torch.allclose(output(fresh), base, atol=1e-6)


def test_diffusers_reads_the_adapter(tiny: StableDiffusion, trained: Path, tiny_folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    as_trained = output(tiny)
    tiny.unet = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet").eval()
    tiny.unet.load_lora_adapter(str(trained), weight_name=WEIGHTS_FILE, prefix=None)
    assert torch.allclose(output(tiny), as_trained, atol=1e-6)


def test_adapter_of_another_base_is_refused(trained: Path, tmp_path: Path) -> None:
    other = load_pipeline(str(build_tiny_pipeline(tmp_path / "other", seed=9)))
    with pytest.raises(ArtifactError, match="was trained on base sha256"):
        load_adapter(other, trained)


def test_unfinished_changed_truncated_and_nan_adapters_are_refused(tiny: StableDiffusion, trained: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished policy adapter"):
        load_adapter(tiny, trained.parent)

    weights = trained / WEIGHTS_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match="sha256"):
        load_adapter(tiny, trained)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="sha256"):
        load_adapter(tiny, trained)
    weights.unlink()
    with pytest.raises(ArtifactError, match="can't be read"):
        load_adapter(tiny, trained)

    broken = {name: p.detach().clone() for name, p in tiny.lora().items()}
    next(iter(broken.values()))[0, 0] = float("nan")
    save_adapter(tiny, trained, weights=broken, facts={})
    with pytest.raises(ArtifactError, match="NaN"):
        load_adapter(tiny, trained)

    card = json.loads((trained / ADAPTER_FILE).read_text())
    (trained / ADAPTER_FILE).write_text(json.dumps(card | {"rank": 8}))
    with pytest.raises(ArtifactError, match="shape"):
        load_adapter(tiny, trained)


def test_pictures_decoded_a_few_at_a_time_are_each_its_own_latents(tiny: StableDiffusion) -> None:
    latents = torch.randn(2 * DECODED_AT_ONCE + 1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([tiny.decode(latent) for latent in latents.split(1)])
    torch.testing.assert_close(tiny.decode(latents), alone, atol=1e-5, rtol=0)


def test_errors_are_one_line(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"no model_index\.json") as caught:
        load_pipeline(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)

    broken = build_tiny_pipeline(tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="can't be loaded") as caught:
        load_pipeline(str(broken))
    assert "\n" not in str(caught.value)


def test_prompts_are_encoded_once(tiny: StableDiffusion) -> None:
    first = tiny.encode_prompts(["a cat", "a dog", "a cat"])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    tiny.text_encoder = None
    assert torch.equal(tiny.encode_prompts(["a dog"])[0], first[1])


def test_pictures_lie_between_0_and_1_and_keep_the_gradient(tiny: StableDiffusion) -> None:
    latents = torch.randn(2, *tiny.latent_shape, requires_grad=True)
    images = tiny.decode(latents)
    assert images.shape == (2, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
    images.sum().backward()
    assert latents.grad is not None
    mean, std = tiny.encode_images(images.detach())
    assert mean.shape == std.shape == latents.shape
    assert (std > 0).all()
