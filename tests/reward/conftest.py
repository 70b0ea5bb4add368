"""Fixtures of the reward tests: prepared folders of coloured squares, a base that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coloured_squares import make_base, pair, write

from vca.reward.settings import RewardSettings


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    roles = {"reward": 48, "validation": 8, "test": 40}
    pairs = [pair(1000 * n + i, role=role) for n, (role, count) in enumerate(roles.items()) for i in range(count)]
    return write(tmp_path_factory.mktemp("data") / "data", pairs)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_base(tmp_path_factory.mktemp("base"), seed=0))


@pytest.fixture(scope="session")
def settings(base: str) -> Callable[..., RewardSettings]:
    """RewardSettings of test size; keyword arguments change single fields."""

    def make(**changes: Any) -> RewardSettings:
        fields = {
            "base": base,
            "image_size": 64,
            "layout": "image_first",
            "instruction": "Match?",
            "head": "linear",
            "pooling": "last",
            "lora_rank": 8,
            "lora_alpha": 8.0,
            "lora_dropout": 0.0,
            "learning_rate": 5e-3,
            "batch": 8,
            "micro_batch": 8,
            "compute_dtype": "float32",
            "gradient_checkpointing": False,
        }
        return RewardSettings(**{**fields, **changes})

    return make
