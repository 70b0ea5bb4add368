"""`generate`: what a sample depends on, and what it does not."""

from __future__ import annotations

import torch

from vca.diffusion.sampler import generate, guided_prediction, start_step
from vca.models.stable_diffusion import StableDiffusion


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def test_a_sample_is_the_same_alone_and_in_a_batch(tiny: StableDiffusion) -> None:
    settings = {"steps": 5, "guidance": 5.0, "eta": 1.0}
    together = generate(tiny, prompts=["a cat", "a dog", "a heart"], generators=seeds(1, 2, 3), **settings)
    alone = generate(tiny, prompts=["a dog"], generators=seeds(2), **settings)
    assert torch.allclose(together.images_BCHW[1], alone.images_BCHW[0], atol=1e-5)
    other = generate(tiny, prompts=["a dog"], generators=seeds(3), **settings)
    assert not torch.allclose(other.images_BCHW, alone.images_BCHW, atol=1e-3)

    edited = generate(
        tiny,
        prompts=["a", "b", "c"],
        previous_latents=together.latents_BCHW,
        strength=0.6,
        generators=seeds(4, 5, 6),
        **settings,
    )
    one = generate(
        tiny,
        prompts=["b"],
        previous_latents=together.latents_BCHW[1:2],
        strength=0.6,
        generators=seeds(5),
        **settings,
    )
    assert torch.allclose(edited.images_BCHW[1], one.images_BCHW[0], atol=1e-5)


def test_weaker_edits_stay_closer_to_the_last_picture(tiny: StableDiffusion) -> None:
    settings = {"steps": 10, "guidance": 1.0, "eta": 0.0}
    first = generate(tiny, prompts=["a cat"], generators=seeds(1), **settings)

    def distance(strength: float) -> float:
        edit = generate(
            tiny,
            prompts=["a dog"],
            previous_latents=first.latents_BCHW,
            strength=strength,
            generators=seeds(2),
            **settings,
        )
        return float((edit.latents_BCHW - first.latents_BCHW).norm())

    assert distance(0.1) < distance(0.5) < distance(1.0)


def test_p16_strength_gives_that_share_of_the_steps() -> None:
    for steps in (5, 20, 70):
        for strength in (0.35, 0.57, 0.8, 1.0):
            assert steps - start_step(strength, steps=steps) == round(strength * steps)


def test_guidance_mixes_both_predictions_and_1_needs_one_forward(tiny: StableDiffusion) -> None:
    latents = torch.randn(2, *tiny.latent_shape)
    timesteps, states = torch.tensor([400, 400]), tiny.encode_prompts(["a cat", "a dog"])
    null = tiny.encode_prompts(["", ""])
    with torch.no_grad():
        conditional, unconditional = tiny.predict(latents, timesteps, states), tiny.predict(latents, timesteps, null)
        for gradient in ("both", "cond"):
            guided = guided_prediction(tiny, latents, timesteps, states, guidance=5, gradient=gradient)
            assert torch.allclose(guided, unconditional + 5 * (conditional - unconditional), atol=1e-5)
        batches = []
        tiny.unet.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
        guided_prediction(tiny, latents, timesteps, states, guidance=1)
        guided_prediction(tiny, latents, timesteps, states, guidance=2)
    assert batches == [2, 4]


def test_the_conditional_half_alone_carries_the_gradient_when_asked(tiny: StableDiffusion) -> None:
    tiny.attach_lora(rank=2, alpha=2)
    latents = torch.randn(2, *tiny.latent_shape)
    timesteps, states = torch.tensor([400, 100]), tiny.encode_prompts(["a cat", "a dog"])
    gradients = {}
    for gradient in ("both", "cond"):
        guided_prediction(tiny, latents, timesteps, states, guidance=3, gradient=gradient).square().sum().backward()
        gradients[gradient] = torch.cat([p.grad.flatten() for p in tiny.lora().values()])
        tiny.unet.zero_grad()
    assert gradients["cond"].norm() > 0
    assert not torch.allclose(gradients["both"], gradients["cond"], rtol=1e-2)
