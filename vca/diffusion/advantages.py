"""How much better a sample did than its siblings: the same dialogue, the same round, other noise.

Shapes: N samples ordered so that the G siblings of a group are adjacent, J rewards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_STILL = 1e-6  # a group whose rewards spread less than this has nothing to say


def group_advantages(rewards_N: Tensor, *, siblings: int) -> Tensor:
    """(R - mean) / (std + 1e-4) within each group of adjacent siblings; 0 where the group does not spread."""
    groups = rewards_N.view(-1, siblings)
    centred = groups - groups.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread < _STILL, torch.zeros_like(centred), centred / (spread + 1e-4)).flatten()


def reward_sum(rewards_NJ: Tensor, weights_NJ: Tensor, *, siblings: int) -> Tensor:
    """The advantage of the weighted sum (eq. 9 to the letter): the reward with the widest scale rules."""
    return group_advantages((rewards_NJ * weights_NJ).sum(1), siblings=siblings)


def advantage_sum(rewards_NJ: Tensor, weights_NJ: Tensor, *, siblings: int) -> Tensor:
    """The weighted sum of each reward's own advantage: scales don't matter, only the weights do."""
    columns = [group_advantages(column, siblings=siblings) for column in rewards_NJ.T]
    return (torch.stack(columns, 1) * weights_NJ).sum(1)


def permute_in_groups(rewards_NJ: Tensor, *, siblings: int, generators: Sequence[torch.Generator]) -> Tensor:
    """The control: every group keeps its rewards, but they belong to siblings drawn by lot. One generator a group."""
    order = [g * siblings + torch.randperm(siblings, generator=generator) for g, generator in enumerate(generators)]
    return rewards_NJ[torch.cat(order).to(rewards_NJ.device)]


class PromptHistory:
    """For one sample per group: its reward against the last ones of the same prompt, as DDPO keeps them.

    Until a prompt has `enough` rewards, all recent rewards stand in.
    """

    def __init__(self, *, length: int = 16, enough: int = 4) -> None:
        self.length, self.enough = length, enough
        self.recent: deque[float] = deque(maxlen=length * 16)
        self.by_prompt: dict[str, list[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """Add the rewards, then compare each with its prompt's history."""
        for prompt, reward in zip(prompts, rewards, strict=True):
            self.recent.append(reward)
            self.by_prompt[prompt] = [*self.by_prompt.get(prompt, []), reward][-self.length :]
        return [self._advantage(self.by_prompt[p], r) for p, r in zip(prompts, rewards, strict=True)]

    def _advantage(self, own: list[float], reward: float) -> float:
        known = torch.tensor(own if len(own) >= self.enough else list(self.recent), dtype=torch.float64)
        spread = float(known.std(unbiased=False))
        return 0.0 if spread < _STILL else (reward - float(known.mean())) / (spread + 1e-4)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "by_prompt": self.by_prompt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=self.length * 16)
        self.by_prompt = {prompt: list(values) for prompt, values in state["by_prompt"].items()}
