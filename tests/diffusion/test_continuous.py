"""Continuous batching draws what the plain sampler draws, whoever shares the forward."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from vca.diffusion.continuous import Chain, advance, begin
from vca.diffusion.sampler import generate
from vca.models.stable_diffusion import StableDiffusion, load_pipeline

# What a forward of another batch size changes: rounding in the last bits, 4e-6 of a latent at every step.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion:
    return load_pipeline("package:stable_diffusion")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def finish(pipeline: StableDiffusion, chains: list[Chain]) -> None:
    while going := [chain for chain in chains if not chain.done]:
        advance(pipeline, going)


def plain(pipeline: StableDiffusion, *, prompt: str, seed: int, steps: int, guidance: float) -> Tensor:
    samples = generate(pipeline, prompts=[prompt], steps=steps, guidance=guidance, eta=0.0, generators=[seeded(seed)])
    return samples.latents_BCHW[0]


def test_pictures_at_different_steps_come_out_as_if_each_were_drawn_alone(pipeline: StableDiffusion) -> None:
    lot = random.Random(3)
    wanted = [
        {"prompt": prompt, "seed": lot.randrange(2**31), "steps": steps, "guidance": guidance}
        for prompt, steps, guidance in [
            ("red heart", 4, 2.5),
            ("cat face", 7, 1.0),
            ("firefighter, dark skin", 5, 4.0),
            ("blue circle, fluent style", 6, 2.5),
        ]
    ]
    going: list[Chain] = []
    finished: dict[str, Tensor] = {}
    waiting = list(wanted)
    while waiting or going:
        if waiting:  # one joins at every step
            one = waiting.pop(0)
            going.append(
                begin(
                    pipeline,
                    prompt=str(one["prompt"]),
                    steps=int(one["steps"]),
                    guidance=float(one["guidance"]),
                    generator=seeded(int(one["seed"])),
                )
            )
        advance(pipeline, going)
        finished |= {chain.prompt: chain.latents_CHW for chain in going if chain.done}
        going = [chain for chain in going if not chain.done]
    for one in wanted:
        alone = plain(pipeline, **one)  # type: ignore[arg-type]
        assert (finished[str(one["prompt"])] - alone).abs().max() < TOLERANCE * alone.abs().max()


def test_an_edit_starts_where_its_strength_says_and_equals_the_plain_sampler(pipeline: StableDiffusion) -> None:
    before = plain(pipeline, prompt="red heart", seed=1, steps=5, guidance=2.5)
    chain = begin(
        pipeline,
        prompt="blue heart",
        steps=5,
        guidance=2.5,
        generator=seeded(2),
        previous_CHW=before,
        strength=0.6,
    )
    assert chain.step == 2
    finish(pipeline, [chain])
    alone = generate(
        pipeline,
        prompts=["blue heart"],
        previous_latents=before[None],
        strength=0.6,
        steps=5,
        guidance=2.5,
        eta=0.0,
        generators=[seeded(2)],
    ).latents_BCHW[0]
    assert (chain.latents_CHW - alone).abs().max() < TOLERANCE * alone.abs().max()


def test_a_chain_s_last_prediction_is_the_picture(pipeline: StableDiffusion) -> None:
    """At the last step the next alpha is 1 where the scheduler says so: what was predicted is what is left."""
    chain = begin(pipeline, prompt="red heart", steps=3, guidance=1.0, generator=seeded(4))
    finish(pipeline, [chain])
    assert chain.predicted_CHW is not None
    if pipeline.final_alpha_cumprod == 1:
        torch.testing.assert_close(chain.predicted_CHW, chain.latents_CHW)


def test_two_policies_share_the_base_and_nothing_else(pipeline: StableDiffusion) -> None:
    one, other = pipeline.beside(), pipeline.beside()
    for policy, seed in ((one, 1), (other, 2)):
        policy.attach_lora(rank=2, alpha=2, seed=seed)
        with torch.no_grad():
            for name, parameter in policy.lora().items():
                if "lora_B" in name:
                    parameter.normal_(std=0.5, generator=seeded(seed))
    assert not pipeline.lora()
    frozen = dict(pipeline.unet.named_parameters())
    shared = [p for name, p in one.unet.named_parameters() if "lora" not in name]
    assert {p.data_ptr() for p in shared} == {p.data_ptr() for p in frozen.values()}
    drawn = []
    for policy in (pipeline, one, other):
        chain = begin(policy, prompt="red heart", steps=2, guidance=1.0, generator=seeded(5))
        finish(policy, [chain])
        drawn.append(chain.latents_CHW)
    again = begin(pipeline, prompt="red heart", steps=2, guidance=1.0, generator=seeded(5))
    finish(pipeline, [again])
    assert torch.equal(again.latents_CHW, drawn[0])
    assert min((drawn[0] - drawn[1]).abs().max(), (drawn[1] - drawn[2]).abs().max()) > 0.01
