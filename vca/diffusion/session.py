"""What an algorithm works with, and how a rollout's rewards become advantages.

Shapes: N samples of this process, J rewards (div, cons, mi), F features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vca.diffusion import dialogues as d
from vca.diffusion.advantages import (
    PromptHistory,
    advantage_sum,
    group_advantages,
    permute_in_groups,
    reward_sum,
)
from vca.diffusion.anchor import Anchor
from vca.diffusion.distributed import World
from vca.diffusion.engine import Engine
from vca.diffusion.features import RunningMean
from vca.diffusion.rewards import REWARDS, RewardFunction, consistency, discounted, diversity, reward_weights
from vca.diffusion.rollout import Place, Rollout
from vca.diffusion.schedule import Schedule
from vca.diffusion.settings import DiffusionSettings
from vca.models.stable_diffusion import StableDiffusion


class Average:
    """The served LoRA: an exponential average of the trained one, quick at first."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], *, decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        for name, p in self.parameters.items():
            self.tensors[name].lerp_(p, 1 - decay)


@dataclass(kw_only=True)
class Session:
    """One process's part of a training run."""

    pipeline: StableDiffusion
    config: DiffusionSettings
    schedule: Schedule
    reward: RewardFunction
    engine: Engine
    world: World
    anchor: Anchor | None
    average: Average | None
    mean: RunningMean = field(default_factory=RunningMean)
    history: PromptHistory = field(default_factory=PromptHistory)
    iteration: int = 0

    def step(self) -> float:
        """One optimizer step; the gradient's norm."""
        norm = self.engine.step()
        if self.average is not None:
            self.average.update()
        return norm

    def weights_of(self, places: list[Place], device: torch.device) -> Tensor:
        """lambda(k) of eq. 9 for every sample, [N, J]."""
        config, custom = self.config, self.config.custom_weights
        rows = [
            reward_weights(
                place.round,
                schedule=config.weights,
                offset=config.round_offset,
                custom=(custom.div, custom.cons, custom.mi),
                ablate=config.ablate,
            )
            for place in places
        ]
        return torch.tensor(rows, device=device)

    def rewards_of(self, places: list[Place], features_NF: Tensor, score_N: Tensor) -> Tensor:
        """R_div, R_cons, R_MI of every sample, [N, J]; features of length 1."""
        columns = [torch.zeros_like(score_N), torch.zeros_like(score_N), score_N]
        for slot in sorted({place.slot for place in places}):
            rows = [n for n, place in enumerate(places) if place.slot == slot]
            rounds, siblings = [places[n].round for n in rows], [places[n].sibling for n in rows]
            own = features_NF[rows]
            at = torch.tensor(rows, device=score_N.device)
            columns[0] = columns[0].index_copy(0, at, diversity(own, rounds, siblings, scope=self.config.diversity))
            columns[1] = columns[1].index_copy(0, at, consistency(own, rounds, siblings))
        return torch.stack(columns, 1)

    def update_mean(self, features_NF: Tensor) -> None:
        """Let the features' running mean see this rollout's, of all processes."""
        count = self.world.total(torch.tensor(float(len(features_NF)), device=features_NF.device))
        self.mean.update(self.world.total(features_NF.sum(0)) / count)

    def credit(self, rollout: Rollout) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Advantages [N], rewards [N, J] and figures for the log."""
        config, places = self.config, rollout.places
        self.update_mean(rollout.features_NF)
        rewards_NJ = self.rewards_of(places, self.mean.unit(rollout.features_NF), rollout.score_N)
        weights_NJ = self.weights_of(places, rewards_NJ.device)
        row = {(place.slot, place.round, place.sibling): n for n, place in enumerate(places)}
        later_N = [row.get((place.slot, place.round + 1, place.sibling)) for place in places]
        judged_NJ = discounted(rewards_NJ, later_N, discount=config.round_discount)
        if config.permute_rewards:
            heads = places[:: config.siblings]
            lots = [d.generator(config.seed, "permute", *place.key) for place in heads]
            judged_NJ = permute_in_groups(judged_NJ, siblings=config.siblings, generators=lots)
        if config.siblings == 1:
            advantages_N = self._against_history(places, (judged_NJ * weights_NJ).sum(1))
        else:
            combine = reward_sum if config.combine == "reward_sum" else advantage_sum
            advantages_N = combine(judged_NJ, weights_NJ, siblings=config.siblings)
        advantages_N = advantages_N.clamp(-config.advantage_clamp, config.advantage_clamp)
        return advantages_N, rewards_NJ, self._figures(rollout, rewards_NJ, weights_NJ, judged_NJ, advantages_N)

    def _against_history(self, places: list[Place], rewards_N: Tensor) -> Tensor:
        own = [(p.key, p.prompt, float(r)) for p, r in zip(places, rewards_N, strict=True)]
        everyone = sorted(entry for part in self.world.gather(own) for entry in part)
        found = self.history.advantages([prompt for _, prompt, _ in everyone], [reward for *_, reward in everyone])
        by_key = {key: advantage for (key, *_), advantage in zip(everyone, found, strict=True)}
        return torch.tensor([by_key[place.key] for place in places], device=rewards_N.device)

    def _figures(
        self, rollout: Rollout, rewards_NJ: Tensor, weights_NJ: Tensor, judged_NJ: Tensor, advantages_N: Tensor
    ) -> dict[str, float]:
        """Means and spreads over all processes, and what share of the advantage each reward decides."""
        siblings = self.config.siblings
        if self.config.combine == "advantage_sum":
            parts_NJ = torch.stack([group_advantages(c, siblings=siblings) for c in judged_NJ.T], 1) * weights_NJ
        else:
            grouped = (judged_NJ * weights_NJ).view(-1, siblings, len(REWARDS))
            parts_NJ = (grouped - grouped.mean(1, keepdim=True)).flatten(0, 1)
        columns = {f"reward_{name}": rewards_NJ[:, j] for j, name in enumerate(REWARDS)}
        columns |= {"advantage": advantages_N, "contrast": rollout.contrast_N, "saturation": rollout.saturation_N}
        if rollout.intent_score_N is not None:
            columns["reward_intent"] = rollout.intent_score_N
        figures: dict[str, float] = {}
        for name, values_N in columns.items():
            figures[f"{name}_mean"], figures[f"{name}_std"] = self.mean_std(values_N)
        decided_J = self.world.total(parts_NJ.square().sum(0).double())
        shares = (decided_J / decided_J.sum().clamp(min=1e-12)).tolist()
        figures |= {f"share_{name}": share for name, share in zip(REWARDS, shares, strict=True)}
        still_N = advantages_N.view(-1, siblings).abs().amax(1) == 0
        figures["still_groups"] = float(self.world.total(still_N.sum()))
        figures["latent_max"] = float(self.world.largest(rollout.latents_NCHW.abs().amax()))
        return figures

    def mean_std(self, values_N: Tensor) -> tuple[float, float]:
        """Over the samples of all processes."""
        values_N = values_N.double()
        sums = self.world.total(torch.stack([torch.ones_like(values_N).sum(), values_N.sum(), values_N.square().sum()]))
        count, total, squares = sums.tolist()
        return total / count, max(squares / count - (total / count) ** 2, 0.0) ** 0.5

    def state_dict(self) -> dict[str, Any]:
        """The small state beside the engine's; the same in all processes."""
        average = None if self.average is None else {"tensors": self.average.tensors, "updates": self.average.updates}
        return {
            "iteration": self.iteration,
            "mean": self.mean.state_dict(),
            "history": self.history.state_dict(),
            "average": average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.mean.load_state_dict(state["mean"])
        self.history.load_state_dict(state["history"])
        if self.average is not None:
            self.average.updates = state["average"]["updates"]
            for name, tensor in state["average"]["tensors"].items():
                self.average.tensors[name].copy_(tensor)
