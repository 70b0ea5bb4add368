import torch

from vca.evaluation.painter import Painter
from vca.models.stable_diffusion import StableDiffusion


def painter(tiny: StableDiffusion, *, batch: int = 8) -> Painter:
    return Painter(pipeline=tiny, steps=5, guidance=1.0, eta=0.0, batch=batch, seed=3)


def lora(tiny: StableDiffusion, size: float) -> None:
    tiny.attach_lora(rank=2, alpha=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tiny.lora().values():
            parameter.copy_(size * torch.randn_like(parameter))


def test_a_picture_depends_on_its_key_and_not_on_its_batch(tiny: StableDiffusion) -> None:
    prompts, keys = ["a", "b", "a", "c"], ["1", "2", "3", "4"]
    together = painter(tiny).paint(prompts=prompts, keys=keys).images_BCHW
    apart = painter(tiny, batch=1).paint(prompts=prompts, keys=keys).images_BCHW
    assert torch.allclose(together, apart, atol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-2)


def test_rows_keep_their_order_and_their_own_strength(tiny: StableDiffusion) -> None:
    tool = painter(tiny)
    first = tool.paint(prompts=["a", "b", "c"], keys=["1", "2", "3"])
    mixed = tool.paint(
        prompts=["a", "b", "c"], keys=["4", "5", "6"], previous_BCHW=first.latents_BCHW, strengths=[0.2, None, 0.8]
    )
    alone = [
        tool.paint(
            prompts=[prompt], keys=[key], previous_BCHW=first.latents_BCHW[row : row + 1], strengths=[strength]
        ).latents_BCHW[0]
        for row, (prompt, key, strength) in enumerate([("a", "4", 0.2), ("b", "5", None), ("c", "6", 0.8)])
    ]
    assert torch.allclose(mixed.latents_BCHW, torch.stack(alone), atol=1e-4)
    moved = (mixed.latents_BCHW - first.latents_BCHW).square().mean((1, 2, 3))
    assert moved[0] < moved[2]


def test_scale_0_is_the_base_and_others_are_not(tiny: StableDiffusion) -> None:
    tool = painter(tiny)
    base = tool.paint(prompts=["a"], keys=["1"]).latents_BCHW
    lora(tiny, 1.0)

    def at(scale: float) -> torch.Tensor:
        with tool.policy(scale):
            return tool.paint(prompts=["a"], keys=["1"]).latents_BCHW

    assert torch.equal(at(0), base)
    half, whole = at(0.5), at(1.0)
    assert not torch.allclose(half, base, atol=1e-3)
    assert not torch.allclose(half, whole, atol=1e-3)
    assert torch.equal(at(0), base)  # and back
