"""The ways to train on dialogues: each plays them, steps the optimizer and returns figures for the log.

Shapes: N samples, M recorded steps, B one forward pass, C H W of a latent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vca.diffusion import dialogues as d
from vca.diffusion import losses
from vca.diffusion.rollout import Place, Rollout, features_of, places_of, play, scores, start_of
from vca.diffusion.sampler import denoise, draw, guided_prediction, starting_latents
from vca.diffusion.schedule import ddim_step, log_prob, split_prediction
from vca.diffusion.session import Session
from vca.diffusion.settings import DiffusionSettings

_INTENT_EVERY = 10  # iterations between looks at the dialogue's intent, from which refined prompts may drift


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One iteration over dialogues, and whether the reward must be differentiable in the picture."""

    iterate: Callable[[Session, Sequence[d.Turn]], dict[str, float]]
    differentiable_reward: bool


def ppo(s: Session, turns: Sequence[d.Turn]) -> dict[str, float]:
    """PPO on recorded denoising steps (title and section 3 of the paper; Black et al. 2024 for the step's density)."""
    config, started = s.config, time.perf_counter()
    with_intent = s.iteration % _INTENT_EVERY == 0
    rollout = play(s.pipeline, config, turns, reward=s.reward, with_intent=with_intent)
    advantages_N, _, figures = s.credit(rollout)
    played = time.perf_counter()

    rows = list(range(len(rollout.places)))
    parts = config.optimizer_steps() // config.updates_per_rollout
    norms, trace = [], _Trace(clip=_clip(s))
    for update in range(config.updates_per_rollout):
        if parts > 1:
            order = torch.randperm(len(rows), generator=d.generator(config.seed, "order", s.iteration, update))
            rows = order.tolist()
        for part in range(parts):
            _ppo_gradients(s, rollout, advantages_N, rows[part::parts], trace)
            if s.anchor is not None:
                for loss in s.anchor.losses(iteration=s.iteration, step=update * parts + part):
                    s.engine.backward(loss)
                    trace.noise.append(loss.detach())
            norms.append(s.step())
    figures |= trace.figures(s)
    figures["gradient_norm"] = sum(norms) / len(norms)
    figures |= {"seconds_rollout": played - started, "seconds_update": time.perf_counter() - played}
    return figures


def _clip(s: Session) -> float:
    elements = int(torch.tensor(s.pipeline.latent_shape).prod())
    return losses.clip_for(s.config.clip_range, elements=elements, reduction=s.config.log_prob)


class _Trace:
    """What happened to the ratios, kept until all of it is reduced at once."""

    def __init__(self, *, clip: float) -> None:
        self.clip = clip
        self.log_ratio: list[Tensor] = []
        self.kl: list[Tensor] = []
        self.noise: list[Tensor] = []

    def figures(self, s: Session) -> dict[str, float]:
        log_ratio = torch.cat(self.log_ratio)
        ratio = log_ratio.exp()
        found = {}
        found["ratio_mean"], found["ratio_std"] = s.mean_std(ratio)
        found["ratio_max"] = float(s.world.largest(ratio.max()))
        found["log_ratio_max"] = float(s.world.largest(log_ratio.abs().max()))
        found["clipped_high"], _ = s.mean_std((ratio > 1 + self.clip).float())
        found["clipped_low"], _ = s.mean_std((ratio < 1 - self.clip).float())
        found["approx_kl"], _ = s.mean_std(0.5 * log_ratio.square())
        if self.kl:
            found["kl_base"], _ = s.mean_std(torch.cat(self.kl))
        if self.noise:
            found["noise_loss"] = float(s.world.total(torch.stack(self.noise).sum())) / s.world.size
        return found


def _ppo_gradients(s: Session, rollout: Rollout, advantages_N: Tensor, rows: list[int], trace: _Trace) -> None:
    """Accumulate the gradient of one optimizer step over `rows`, all their recorded steps averaged."""
    config, pipeline = s.config, s.pipeline
    total = float(s.world.total((rollout.step_NM[rows] >= 0).sum().to(pipeline.device)))
    share = s.world.size / total
    for chunk, m_B, output_BCHW in _forwards(config, rollout, rows):
        loss_B = _step_loss(s, rollout, advantages_N, chunk, m_B, trace, output_BCHW)
        if config.multi_round_weight:
            loss_B = loss_B + config.multi_round_weight * _multi_round_loss(s, rollout, chunk, m_B)
        s.engine.backward(loss_B.sum() * share)


def _forwards(
    config: DiffusionSettings, rollout: Rollout, rows: list[int]
) -> Iterator[tuple[list[int], list[int], Tensor | None]]:
    """What is differentiated at a time: samples, which recorded step of each, and the output where it was kept."""
    while rollout.kept:
        kept = rollout.kept.pop(0)  # its graph is freed with it
        yield kept.rows_B, kept.m_B, kept.output_BCHW
    if config.keep_graphs:
        return
    for m in range(config.steps_per_sample):
        for first in range(0, len(rows), config.micro_batch):
            chunk = [n for n in rows[first : first + config.micro_batch] if rollout.step_NM[n, m] >= 0]
            if chunk:
                yield chunk, [m] * len(chunk), None


def _step_loss(
    s: Session,
    rollout: Rollout,
    advantages_N: Tensor,
    chunk: list[int],
    m_B: list[int],
    trace: _Trace,
    output_BCHW: Tensor | None,
) -> Tensor:
    """Clipped surrogate and divergence from the base, [B]. output_BCHW: the policy's, where the rollout kept it."""
    config, pipeline = s.config, s.pipeline
    states_BLD = pipeline.encode_prompts([rollout.places[n].prompt for n in chunk])
    before_BCHW, action_BCHW = rollout.before_NMCHW[chunk, m_B], rollout.action_NMCHW[chunk, m_B]
    step_B = rollout.step_NM[chunk, m_B]
    abar, next_abar = (
        a[step_B][:, None, None, None].to(pipeline.device) for a in (s.schedule.abar_S, s.schedule.next_abar_S)
    )

    def predicted(gradient: str) -> Tensor:
        return guided_prediction(
            pipeline,
            before_BCHW,
            s.schedule.timesteps_S[step_B].to(pipeline.device),
            states_BLD,
            guidance=config.guidance,
            gradient=gradient,
        )

    def gaussian(output_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BCHW, sigma, _ = ddim_step(
            output_BCHW, before_BCHW, abar, next_abar, eta=config.eta, prediction_type=pipeline.prediction_type
        )
        return mean_BCHW, sigma

    if config.kl_weight:
        with torch.no_grad(), pipeline.adapter_off():
            base_output_BCHW = predicted("both")
            base_mean_BCHW, _ = gaussian(base_output_BCHW)
    if output_BCHW is None:
        output_BCHW = predicted(config.guidance_gradient)
    mean_BCHW, sigma = gaussian(output_BCHW)
    logp_B = log_prob(action_BCHW, mean_BCHW, sigma, reduction=config.log_prob)
    old_logp_B = rollout.logp_NM[chunk, m_B]
    loss_B, _ = losses.ppo(logp_B, old_logp_B, advantages_N[chunk], clip=trace.clip)
    trace.log_ratio.append((logp_B - old_logp_B).detach())
    if config.kl_weight:
        kl_B = (
            losses.gaussian_kl(mean_BCHW, base_mean_BCHW, sigma)
            if config.kl_space == "mu"
            else losses.prediction_distance(output_BCHW, base_output_BCHW)
        )
        trace.kl.append(kl_B.detach())
        loss_B = loss_B + config.kl_weight * kl_B
    return loss_B


def _multi_round_loss(s: Session, rollout: Rollout, chunk: list[int], m_B: list[int]) -> Tensor:
    """Eq. 5 at the recorded step's noise, [B]; 0 in round 1 and where the wanted picture isn't known."""
    pipeline = s.pipeline
    places = [rollout.places[n] for n in chunk]
    targets = [place.turn.script.targets[place.round - 1] if place.round > 1 else None for place in places]
    known = [b for b, target in enumerate(targets) if target is not None]
    zeros_B = rollout.logp_NM.new_zeros(len(chunk))
    if not known or s.anchor is None:
        return zeros_B
    goals = [s.anchor.posterior(target)[0] for target in targets if target is not None]
    lots = [d.generator(s.config.seed, "multi", *places[b].key, places[b].sibling, m_B[b]) for b in known]
    noise_BCHW = draw(lots, pipeline.latent_shape, pipeline.device)
    step_B = rollout.step_NM[[chunk[b] for b in known], [m_B[b] for b in known]]
    abar, next_abar = (
        a[step_B][:, None, None, None].to(noise_BCHW) for a in (s.schedule.abar_S, s.schedule.next_abar_S)
    )
    noised_BCHW = losses.add_noise(rollout.previous_NCHW[[chunk[b] for b in known]], noise_BCHW, abar)
    output_BCHW = pipeline.predict(
        noised_BCHW,
        s.schedule.timesteps_S[step_B].to(pipeline.device),
        pipeline.encode_prompts([places[b].prompt for b in known]),
    )
    loss = losses.multi_round(
        output_BCHW,
        noised_BCHW,
        torch.stack(goals),
        noise_BCHW,
        abar,
        next_abar,
        prediction_type=pipeline.prediction_type,
    )
    return zeros_B.index_copy(0, torch.tensor(known, device=zeros_B.device), loss)


def refl(s: Session, turns: Sequence[d.Turn]) -> dict[str, float]:
    """Algorithm 1 to the letter: the reward's gradient through one predicted clean latent (ReFL, Xu et al. 2023)."""
    config, started = s.config, time.perf_counter()
    low, high = config.window
    lot = d.generator(config.seed, "refl", s.iteration)
    remaining = int(torch.randint(low, high + 1, (), generator=lot))
    places = places_of(turns, rounds=config.rounds, siblings=config.siblings)
    total = float(s.world.total(torch.tensor(float(len(places)), device=s.pipeline.device)))
    finished: dict[tuple[int, int], Tensor] = {}
    seen: dict[int, list[tuple[Place, Tensor]]] = {}
    rewards, raw = [], []
    for k in range(1, config.rounds + 1):
        here = [place for place in places if place.round == k]
        for first in range(0, len(here), config.micro_batch):
            chunk = here[first : first + config.micro_batch]
            x0_NCHW = _refl_latents(s, chunk, finished, remaining, samples=total / s.world.size)
            features_NF = features_of(s.pipeline, config, x0_NCHW)
            images_NCHW = checkpoint(s.pipeline.decode, x0_NCHW, use_reentrant=False)
            score_N, _ = scores(config, chunk, images_NCHW, reward=s.reward, with_intent=False)
            earlier = [entry for slot in sorted({p.slot for p in chunk}) for entry in seen.get(slot, [])]
            everyone = [place for place, _ in earlier] + chunk
            unit_NF = torch.cat([*(f[None] for _, f in earlier), s.mean.unit(features_NF)])
            padded_N = torch.cat([score_N.new_zeros(len(earlier)), score_N])
            rewards_NJ = s.rewards_of(everyone, unit_NF, padded_N)[len(earlier) :]
            total_N = (rewards_NJ * s.weights_of(chunk, rewards_NJ.device)).sum(1)
            loss_N = losses.refl(total_N, kind=config.refl_loss, margin=config.refl_margin)
            s.engine.backward(config.refl_reward_weight * loss_N.sum() * s.world.size / total)
            rewards.append(rewards_NJ.detach())
            raw.append(features_NF.detach())
            for place, latents_CHW, unit_F in zip(
                chunk, x0_NCHW.detach(), unit_NF[len(earlier) :].detach(), strict=True
            ):
                finished[place.slot, place.sibling] = latents_CHW
                seen.setdefault(place.slot, []).append((place, unit_F))
    figures = {}
    for j, name in enumerate(("div", "cons", "mi")):
        figures[f"reward_{name}_mean"], figures[f"reward_{name}_std"] = s.mean_std(torch.cat(rewards)[:, j])
    if s.anchor is not None:
        noise = []
        for loss in s.anchor.losses(iteration=s.iteration, step=0):
            s.engine.backward(loss)
            noise.append(loss.detach())
        figures["noise_loss"] = float(s.world.total(torch.stack(noise).sum())) / s.world.size
    s.update_mean(torch.cat(raw))
    figures["gradient_norm"] = s.step()
    figures["seconds_update"] = time.perf_counter() - started
    return figures


def _refl_latents(
    s: Session, places: list[Place], finished: dict[tuple[int, int], Tensor], remaining: int, *, samples: float
) -> Tensor:
    """The clean latents predicted at `remaining` steps, with a graph of that one forward, gradients clipped."""
    config, pipeline = s.config, s.pipeline
    starts = [start_of(config, place) for place in places]
    stops = [max(start, config.steps - remaining) for start in starts]
    previous = torch.stack([finished[p.slot, p.sibling] for p in places]) if places[0].round > 1 else None
    lots = [d.generator(config.seed, "noise", *place.key, place.sibling) for place in places]
    states_BLD = pipeline.encode_prompts([place.prompt for place in places])
    latents_NCHW = denoise(
        pipeline,
        s.schedule,
        latents_BCHW=starting_latents(
            s.schedule,
            draw(lots, pipeline.latent_shape, pipeline.device),
            previous_BCHW=previous,
            start_steps=starts,
        ),
        states_BLD=states_BLD,
        start_steps=starts,
        stop_steps=stops,
        guidance=config.guidance,
        eta=lambda index: 0.0,
        noise=lambda index, rows_N: latents_NCHW,  # never asked for at eta 0
    )
    step_B = torch.tensor(stops)
    output_NCHW = guided_prediction(
        pipeline,
        latents_NCHW,
        s.schedule.timesteps_S[step_B].to(pipeline.device),
        states_BLD,
        guidance=config.guidance,
        gradient=config.guidance_gradient,
    )
    abar = s.schedule.abar_S[step_B][:, None, None, None].to(pipeline.device)
    x0_NCHW, _ = split_prediction(output_NCHW, latents_NCHW, abar, prediction_type=pipeline.prediction_type)

    def clip(gradient_NCHW: Tensor) -> Tensor:
        # the loss is a mean over `samples`, so a sample's own gradient is that many times what arrives here
        norm_N = gradient_NCHW.flatten(1).norm(dim=1) * samples / config.refl_reward_weight
        factor_N: Tensor = config.refl_clip / norm_N.clamp(min=config.refl_clip)
        return gradient_NCHW * factor_N[:, None, None, None]

    x0_NCHW.register_hook(clip)  # type: ignore[no-untyped-call]
    return x0_NCHW


ALGORITHMS = {
    "ppo": Algorithm(iterate=ppo, differentiable_reward=False),
    "refl": Algorithm(iterate=refl, differentiable_reward=True),
}
