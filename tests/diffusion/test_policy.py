"""P2, P10, P13, P15, P16: rollouts, the ratio, the LoRA, and what a reward depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import corpus, log, lora_vector, redness, settings, trainer

from vca.diffusion import dialogues as d
from vca.diffusion.rollout import (
    Rollout,
    eta_of,
    places_of,
    play,
    recorded_steps,
    start_of,
    trainable_steps,
)
from vca.diffusion.sampler import denoise, schedule_of
from vca.diffusion.schedule import log_prob, make_schedule
from vca.diffusion.settings import DiffusionSettings
from vca.models.stable_diffusion import StableDiffusion, load_pipeline


def rollout(pipeline: StableDiffusion, config: DiffusionSettings, *, iteration: int = 0) -> Rollout:
    turns = d.batch(corpus(), iteration=iteration, dialogues=config.dialogues, seed=config.seed)
    return play(pipeline, config, turns, reward=redness)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_p02_first_ratio_is_exactly_1(tiny_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    trainer_ = trainer(load_pipeline(str(tiny_folder), dtype=dtype), tmp_path, iterations=1, guidance=3)
    trainer_.train(progress=_quiet())
    assert log(tmp_path)[0]["log_ratio_max"] == 0.0
    assert log(tmp_path)[0]["ratio_std"] == 0.0


def test_p02_ratio_survives_another_split_of_the_batch_but_no_rounding_of_latents(
    tiny: StableDiffusion,
) -> None:
    config = settings()
    schedule = schedule_of(tiny, steps=config.steps)
    played = rollout(tiny, config)
    index = int(played.step_NM[0, 0])

    def recomputed(before: torch.Tensor, action: torch.Tensor, rows: list[int]) -> torch.Tensor:
        kept = {}

        def keep(step):  # type: ignore[no-untyped-def]
            kept.update(mean=step.mean_NCHW, sigma=step.sigma)

        denoise(
            tiny,
            schedule,
            latents_BCHW=before,
            states_BLD=tiny.encode_prompts([played.places[n].prompt for n in rows]),
            start_steps=[index] * len(rows),
            stop_steps=[index + 1] * len(rows),
            guidance=1,
            eta=lambda i: 1.0,
            noise=lambda i, rows_N: torch.zeros_like(before[rows_N]),
            on_step=keep,
        )
        return log_prob(action, kept["mean"], kept["sigma"])

    four = [0, 1, 2, 3]
    before, action, old = played.before_NMCHW[:4, 0], played.action_NMCHW[:4, 0], played.logp_NM[:4, 0]
    one_by_one = torch.cat([recomputed(before[n : n + 1], action[n : n + 1], [n]) for n in four])
    assert (one_by_one - old).abs().max() <= 1e-6
    for dtype, least in ((torch.float16, 1e-5), (torch.bfloat16, 1e-4)):
        rounded = recomputed(before.to(dtype).float(), action.to(dtype).float(), four)
        assert (rounded - old).abs().max() > least


def test_p10_only_the_lora_learns(tiny: StableDiffusion, tmp_path: Path) -> None:
    def is_lora(name: str) -> bool:
        return ".lora_" in name

    trainer_ = trainer(tiny, tmp_path, iterations=2)
    base = {name: p.clone() for name, p in tiny.unet.named_parameters() if not is_lora(name)}
    start = lora_vector(tiny)
    latents, timesteps = torch.randn(2, *tiny.latent_shape), torch.tensor([700, 20])
    states = tiny.encode_prompts(["a cat", "a dog"])
    trainer_.train(progress=_quiet())

    for name, p in tiny.unet.named_parameters():
        if not is_lora(name):
            assert torch.equal(p, base[name]), name
    assert not torch.equal(lora_vector(tiny), start)
    with torch.no_grad():
        on = tiny.predict(latents, timesteps, states)
        with tiny.adapter_off():
            off = tiny.predict(latents, timesteps, states)
    assert (on - off).abs().max() > 1e-5

    lora = tiny.lora()
    for name in [name for name in lora if "lora_A" in name]:
        change = lora[name.replace("lora_A", "lora_B")] @ lora[name]
        assert torch.linalg.matrix_rank(change.detach()) <= 4

    from peft.tuners.lora import LoraLayer

    for module in tiny.unet.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    with torch.no_grad():
        assert torch.allclose(tiny.predict(latents, timesteps, states), on, atol=1e-4)


def test_p13_the_reward_image_depends_on_the_trained_action(tiny: StableDiffusion) -> None:
    """The picture changes when only a trained step's noise does; x0 predicted before that step does not."""
    schedule = schedule_of(tiny, steps=5)
    start = torch.randn(1, *tiny.latent_shape, generator=torch.Generator().manual_seed(1))

    def picture(last_noise: int, *, trained: int) -> tuple[torch.Tensor, torch.Tensor]:
        predicted = {}
        final = denoise(
            tiny,
            schedule,
            latents_BCHW=start,
            states_BLD=tiny.encode_prompts(["a cat"]),
            start_steps=[0],
            guidance=1,
            eta=lambda index: 1.0,
            noise=lambda index, rows_N: torch.randn(
                start.shape, generator=torch.Generator().manual_seed(last_noise if index == trained else 50 + index)
            ),
            on_step=lambda step: predicted.update({step.index: step.x0_NCHW}),
        )
        return tiny.decode(final), predicted[trained]

    for trained in (0, 2, 4):
        (image_a, x0_a), (image_b, x0_b) = picture(1, trained=trained), picture(2, trained=trained)
        assert (image_a - image_b).abs().max() > 1e-4
        assert torch.equal(x0_a, x0_b)


def test_p13_the_early_reward_image_is_predicted_after_the_action(tiny: StableDiffusion) -> None:
    config = settings(reward_image="x0_next", steps_per_sample=1, feature="latent")
    played = rollout(tiny, config)
    schedule = schedule_of(tiny, steps=config.steps)
    for n, place in enumerate(played.places):
        step = int(played.step_NM[n, 0])
        found: list[torch.Tensor] = []
        denoise(
            tiny,
            schedule,
            latents_BCHW=played.action_NMCHW[n : n + 1, 0],
            states_BLD=tiny.encode_prompts([place.prompt]),
            start_steps=[step + 1],
            stop_steps=[step + 2],
            guidance=1,
            eta=lambda index: 0.0,
            noise=lambda index, rows_N: torch.zeros(1),
            on_step=lambda s, found=found: found.append(s.x0_NCHW[0]),
        )
        assert torch.allclose(played.latents_NCHW[n], found[0], atol=1e-4, rtol=1e-4)


def test_p15_trained_steps_lie_in_the_window_and_are_random() -> None:
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    config = DiffusionSettings()
    turns = d.batch(corpus(), iteration=0, dialogues=4, seed=0)
    for final in (1.0, float(alphas[0])):
        schedule = make_schedule(alphas, steps=70, prediction_type="epsilon", final_alpha_cumprod=final)
        assert trainable_steps(config, schedule, start=0) == list(range(30, 69 if final == 1 else 70))
        for place in places_of(turns, rounds=3, siblings=8):
            steps = recorded_steps(config, schedule, place)
            assert len(steps) == 1
            assert 30 <= steps[0] <= 69
            assert steps[0] >= start_of(config, place)
            assert schedule.sigma(steps[0], eta=1.0) > 0
    inside = eta_of(DiffusionSettings(noisy_steps="window"))
    assert [inside(29), inside(30), inside(69)] == [0, 1, 1]


def test_p15_records_are_of_the_steps_they_claim(tiny: StableDiffusion) -> None:
    config = settings(rounds=2, batch=16)
    played = rollout(tiny, config)
    schedule = schedule_of(tiny, steps=config.steps)
    assert played.step_NM.shape == (16, 2)
    for n, place in enumerate(played.places):
        steps = [step for step in played.step_NM[n].tolist() if step >= 0]
        assert steps == recorded_steps(config, schedule, place)
        for m in range(len(steps)):
            assert played.before_NMCHW[n, m].abs().sum() > 0
            assert not torch.equal(played.before_NMCHW[n, m], played.action_NMCHW[n, m])
        if steps == [0, 1]:  # the action of one step is where the next starts
            assert torch.equal(played.action_NMCHW[n, 0], played.before_NMCHW[n, 1])


def test_p16_rounds_start_where_their_strength_says() -> None:
    config = DiffusionSettings(rounds=4)
    turns = d.batch(corpus(), iteration=0, dialogues=4, seed=0)
    for place in places_of(turns, rounds=3, siblings=2):
        if place.round == 1:
            assert start_of(config, place) == 0
            continue
        share = d.strength(place.turn.script.dialogue_id, place.round, low=0.5, high=0.8, decay=0.9, floor=0.35, seed=0)
        assert 70 - start_of(config, place) == round(share * 70)
        assert max(0.35, 0.5 * 0.9 ** (place.round - 2)) <= share <= 0.8 * 0.9 ** (place.round - 2)
    assert d.strength("x", 9, low=0.5, high=0.8, decay=0.9, floor=0.35, seed=0) >= 0.35


def test_p16_same_seed_same_dialogue_and_round_1_ignores_history(tiny: StableDiffusion) -> None:
    both, one = settings(rounds=2, batch=16), settings(rounds=1)
    a, b, first = rollout(tiny, both), rollout(tiny, both), rollout(tiny, one)
    assert torch.equal(a.latents_NCHW, b.latents_NCHW)
    assert torch.equal(a.latents_NCHW[:8], first.latents_NCHW)
    assert torch.equal(a.previous_NCHW[8:], a.latents_NCHW[:8])
    other = rollout(tiny, both.model_copy(update={"seed": 1}))
    assert not torch.allclose(a.latents_NCHW, other.latents_NCHW)
    siblings = a.latents_NCHW[:4]
    assert (siblings[0] - siblings[1]).abs().max() > 1e-2


def test_p14_a_rollout_does_not_depend_on_the_order_of_dialogues(tiny: StableDiffusion) -> None:
    config = settings(rounds=2, batch=16)
    turns = d.batch(corpus(), iteration=0, dialogues=2, seed=0)
    forward = play(tiny, config, turns, reward=redness)
    backward = play(tiny, config, turns[::-1], reward=redness)
    assert torch.allclose(forward.score_N[:4], backward.score_N[4:8], atol=1e-5)
    assert torch.equal(forward.step_NM[:4], backward.step_NM[4:8])


def test_a_picture_shown_again_is_encoded_again(tiny: StableDiffusion) -> None:
    config = settings(rounds=2, batch=16)
    latent, image = rollout(tiny, config), rollout(tiny, config.model_copy(update={"history": "image"}))
    with torch.no_grad():
        expected = tiny.encode_images(tiny.decode(latent.latents_NCHW[:8]))[0]
    assert torch.allclose(image.previous_NCHW[8:], expected, atol=1e-4)
    assert not torch.allclose(image.previous_NCHW[8:], latent.previous_NCHW[8:], atol=1e-2)


def test_the_intent_is_scored_where_asked(tiny: StableDiffusion) -> None:
    def words(*, prompts: list[str], images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    config = settings(rounds=1)
    turns = d.batch(corpus(), iteration=0, dialogues=2, seed=0)
    refined = play(tiny, config, turns, reward=words, with_intent=True)
    both = play(tiny, config.model_copy(update={"mi_text": "both"}), turns, reward=words)
    assert refined.intent_score_N is not None
    prompts = torch.tensor([float(len(p.prompt)) for p in refined.places])
    assert torch.equal(refined.score_N, prompts)
    assert torch.equal(refined.intent_score_N, prompts + 4)  # " big"
    assert torch.equal(both.score_N, prompts + 2)


def test_the_policy_cannot_change_its_yardstick(tiny: StableDiffusion) -> None:
    from vca.diffusion.features import RunningMean, probe

    latents = torch.randn(3, *tiny.latent_shape)
    tiny.attach_lora(rank=4, alpha=4)
    before = probe(tiny, latents)
    with torch.no_grad():
        for name, p in tiny.lora().items():
            if "lora_B" in name:
                p.fill_(0.3)
    assert torch.equal(probe(tiny, latents), before)
    assert all(p.requires_grad for p in tiny.lora().values())

    mean = RunningMean()
    mean.update(before.mean(0))
    unit = mean.unit(before)
    assert torch.allclose(unit.norm(dim=1), torch.ones(3))
    assert (unit @ unit.T)[0, 1] < (before @ before.T)[0, 1] / before[0].norm() / before[1].norm()


def test_every_epoch_plays_every_dialogue_once() -> None:
    played = [t for i in range(4) for t in d.batch(corpus(), iteration=i, dialogues=2, seed=3)]
    for epoch in (0, 1):
        names = [t.script.dialogue_id for t in played if t.epoch == epoch]
        assert sorted(names) == sorted(s.dialogue_id for s in corpus().scripts)
    twice = d.batch(replace(corpus(), scripts=corpus().scripts[:1]), iteration=0, dialogues=2, seed=0)
    assert [t.epoch for t in twice] == [0, 1]  # another epoch, so other noise


def _quiet():  # type: ignore[no-untyped-def]
    from vca.progress import Quiet

    return Quiet()
