"""Playing dialogues: every round starts from the pictures of the last, and the trained steps are recorded.

Shapes: N samples ordered by round, dialogue, sibling (siblings adjacent); M recorded steps; C H W of a latent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vca.diffusion import dialogues as d
from vca.diffusion.features import LastLayer, pool, probe
from vca.diffusion.rewards import RewardFunction
from vca.diffusion.sampler import Step, denoise, draw, schedule_of, start_step, starting_latents
from vca.diffusion.schedule import Schedule, log_prob
from vca.diffusion.settings import DiffusionSettings
from vca.models.stable_diffusion import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample stands: the slot of its dialogue in this process's part of the rollout, round, sibling."""

    slot: int
    turn: d.Turn
    round: int
    sibling: int

    @property
    def prompt(self) -> str:
        return self.turn.script.prompts[self.round - 1]

    @property
    def key(self) -> tuple[object, ...]:
        return (self.turn.epoch, self.turn.script.dialogue_id, self.round)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A forward pass of the rollout that training goes backward through: recorded step m_B of the samples rows_B."""

    rows_B: list[int]
    m_B: list[int]
    output_BCHW: Tensor


@dataclass(kw_only=True)
class Rollout:
    """What the samples of one process leave behind. Records that don't exist have step -1.

    latents_NCHW: finished; previous_NCHW: what the round started from (zeros in round 1). score_N: the reward model's
    on the text that trains, intent_score_N on the dialogue's intent, where it was asked. contrast_N and saturation_N
    of the pictures warn of a reward that is being exploited. kept: with `keep_graphs`, all recorded steps.
    """

    places: list[Place]
    latents_NCHW: Tensor
    previous_NCHW: Tensor
    features_NF: Tensor
    score_N: Tensor
    intent_score_N: Tensor | None
    contrast_N: Tensor
    saturation_N: Tensor
    step_NM: Tensor
    before_NMCHW: Tensor
    action_NMCHW: Tensor
    logp_NM: Tensor
    kept: list[Kept]


def eta_of(config: DiffusionSettings) -> Callable[[int], float]:
    """Noise by step index: everywhere, or in the window only."""
    low, high = config.window
    inside = range(config.steps - high, config.steps - low + 1)
    return lambda index: config.eta if config.noisy_steps == "all" or index in inside else 0.0


def trainable_steps(config: DiffusionSettings, schedule: Schedule, *, start: int) -> list[int]:
    """Step indices of a round that starts at `start`: in the window, and random (a last step of sigma 0 is not)."""
    low, high = config.window
    first, last = max(start, config.steps - high), config.steps - low
    return [index for index in range(first, last + 1) if schedule.sigma(index, eta=config.eta) > 0]


def start_of(config: DiffusionSettings, place: Place) -> int:
    """The step index at which a sample's round starts."""
    if place.round == 1:
        return 0
    low, high = config.strength
    share = d.strength(
        place.turn.script.dialogue_id,
        place.round,
        low=low,
        high=high,
        decay=config.strength_decay,
        floor=config.strength_floor,
        seed=config.seed,
    )
    return start_step(share, steps=config.steps)


def recorded_steps(config: DiffusionSettings, schedule: Schedule, place: Place) -> list[int]:
    """The steps of a sample that are trained, ascending; siblings share them."""
    allowed = trainable_steps(config, schedule, start=start_of(config, place))
    lot = random.Random(d.key_seed(config.seed, "steps", *place.key))
    return sorted(lot.sample(allowed, min(config.steps_per_sample, len(allowed))))


def places_of(turns: Sequence[d.Turn], *, rounds: int, siblings: int) -> list[Place]:
    """All samples of a rollout, round by round."""
    return [
        Place(slot=slot, turn=turn, round=k, sibling=g)
        for k in range(1, rounds + 1)
        for slot, turn in enumerate(turns)
        if k <= len(turn.script.prompts)
        for g in range(siblings)
    ]


@torch.no_grad()
def play(
    pipeline: StableDiffusion,
    config: DiffusionSettings,
    turns: Sequence[d.Turn],
    *,
    reward: RewardFunction,
    with_intent: bool = False,
) -> Rollout:
    """Play every round of `turns` with `config.siblings` chains each.

    with_intent: also score the pictures against the dialogue's intent.
    """
    schedule = schedule_of(pipeline, steps=config.steps, spacing=config.spacing)
    chunks: list[Rollout] = []
    finished: dict[tuple[int, int], Tensor] = {}
    everything = places_of(turns, rounds=config.rounds, siblings=config.siblings)
    for k in range(1, config.rounds + 1):
        places = [place for place in everything if place.round == k]
        for first in range(0, len(places), config.micro_batch):
            chunk = places[first : first + config.micro_batch]
            previous = torch.stack([finished[p.slot, p.sibling] for p in chunk]) if k > 1 else None
            played = _chunk(pipeline, config, schedule, chunk, previous, reward, with_intent)
            chunks.append(played)
            for place, latents_CHW in zip(chunk, played.latents_NCHW, strict=True):
                finished[place.slot, place.sibling] = latents_CHW
    return _joined(chunks)


def _chunk(
    pipeline: StableDiffusion,
    config: DiffusionSettings,
    schedule: Schedule,
    places: list[Place],
    previous_NCHW: Tensor | None,
    reward: RewardFunction,
    with_intent: bool,
) -> Rollout:
    shape, device, count = pipeline.latent_shape, pipeline.device, len(places)
    generators = [d.generator(config.seed, "noise", *place.key, place.sibling) for place in places]
    starts = [start_of(config, place) for place in places]
    steps = [recorded_steps(config, schedule, place) for place in places]
    early = config.reward_image == "x0_next"
    # The prediction after the trained step is made by the step that follows it.
    stops = [min(chosen[0] + 2, config.steps) if early and chosen else config.steps for chosen in steps]

    step_NM = torch.tensor([[*chosen, *[-1] * (config.steps_per_sample - len(chosen))] for chosen in steps])
    before_NMCHW = torch.zeros(count, config.steps_per_sample, *shape, device=device)
    action_NMCHW = torch.zeros_like(before_NMCHW)
    logp_NM = torch.zeros(count, config.steps_per_sample, device=device)
    predicted_NCHW = torch.zeros(count, *shape, device=device)
    recorded = {index for chosen in steps for index in chosen}
    kept: list[Kept] = []

    def record(step: Step) -> None:
        predicted_NCHW[step.rows_N] = step.x0_NCHW
        rows = step.rows_N.tolist()
        at = [i for i, row in enumerate(rows) if step.index in steps[row]]
        if not at:
            return
        logp = log_prob(step.actions_NCHW, step.mean_NCHW, step.sigma, reduction=config.log_prob)
        where = [rows[i] for i in at], [steps[rows[i]].index(step.index) for i in at]
        before_NMCHW[where] = step.latents_NCHW[at]
        action_NMCHW[where] = step.actions_NCHW[at]
        logp_NM[where] = logp[at]
        if config.keep_graphs:
            with torch.enable_grad():
                kept.append(Kept(rows_B=where[0], m_B=where[1], output_BCHW=step.output_NCHW[at]))

    with LastLayer(pipeline.unet) as last:
        latents_NCHW = denoise(
            pipeline,
            schedule,
            latents_BCHW=starting_latents(
                schedule, draw(generators, shape, device), previous_BCHW=previous_NCHW, start_steps=starts
            ),
            states_BLD=pipeline.encode_prompts([place.prompt for place in places]),
            start_steps=starts,
            stop_steps=stops,
            guidance=config.guidance,
            eta=eta_of(config),
            noise=lambda index, rows_N: draw([generators[row] for row in rows_N.tolist()], shape, device),
            on_step=record,
            graph=lambda index: config.keep_graphs and index in recorded,
            gradient=config.guidance_gradient if config.keep_graphs else "both",
        )
        if early:
            ended = torch.tensor(stops, device=device) < config.steps
            latents_NCHW = torch.where(ended[:, None, None, None], predicted_NCHW, latents_NCHW)
        features_NF = last.pooled(count) if config.feature == "hook" else features_of(pipeline, config, latents_NCHW)
    images_NCHW = pipeline.decode(latents_NCHW)
    score_N, intent_score_N = scores(config, places, images_NCHW, reward=reward, with_intent=with_intent)
    if config.history == "image":
        latents_NCHW = pipeline.encode_images(images_NCHW)[0]
    return Rollout(
        places=places,
        latents_NCHW=latents_NCHW,
        previous_NCHW=torch.zeros_like(latents_NCHW) if previous_NCHW is None else previous_NCHW,
        features_NF=features_NF,
        score_N=score_N,
        intent_score_N=intent_score_N,
        contrast_N=images_NCHW.flatten(1).std(1),
        saturation_N=(images_NCHW.amax(1) - images_NCHW.amin(1)).flatten(1).mean(1),
        step_NM=step_NM,
        before_NMCHW=before_NMCHW,
        action_NMCHW=action_NMCHW,
        logp_NM=logp_NM,
        kept=kept,
    )


def features_of(pipeline: StableDiffusion, config: DiffusionSettings, latents_NCHW: Tensor) -> Tensor:
    """f(z) of finished latents, not yet centred, [N, F]."""
    return probe(pipeline, latents_NCHW) if config.feature == "probe" else pool(latents_NCHW)


def scores(
    config: DiffusionSettings,
    places: Sequence[Place],
    images_NCHW: Tensor,
    *,
    reward: RewardFunction,
    with_intent: bool,
) -> tuple[Tensor, Tensor | None]:
    """R_MI by `config.mi_text`, and the intent's score where that is known."""
    intent_N = refined_N = None
    if config.mi_text != "refined" or with_intent:
        intent_N = reward(prompts=[place.turn.script.intent for place in places], images_BCHW=images_NCHW)
    if config.mi_text != "intent":
        refined_N = reward(prompts=[place.prompt for place in places], images_BCHW=images_NCHW)
    asked = {"refined": [refined_N], "intent": [intent_N], "both": [refined_N, intent_N]}[config.mi_text]
    return torch.stack([score.float() for score in asked if score is not None]).mean(0), intent_N


def _joined(chunks: list[Rollout]) -> Rollout:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(chunk, name) for chunk in chunks])

    offsets = [sum(len(before.places) for before in chunks[:n]) for n in range(len(chunks))]
    return Rollout(
        places=[place for chunk in chunks for place in chunk.places],
        latents_NCHW=cat("latents_NCHW"),
        previous_NCHW=cat("previous_NCHW"),
        features_NF=cat("features_NF"),
        score_N=cat("score_N"),
        intent_score_N=cat("intent_score_N") if chunks[0].intent_score_N is not None else None,
        contrast_N=cat("contrast_N"),
        saturation_N=cat("saturation_N"),
        step_NM=cat("step_NM"),
        before_NMCHW=cat("before_NMCHW"),
        action_NMCHW=cat("action_NMCHW"),
        logp_NM=cat("logp_NM"),
        kept=[
            replace(kept, rows_B=[offset + row for row in kept.rows_B])
            for offset, chunk in zip(offsets, chunks, strict=True)
            for kept in chunk.kept
        ],
    )
