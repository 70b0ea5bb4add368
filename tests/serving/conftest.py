"""Servers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_process import Running, make_policy, make_reward, serving

QUICK = {"test_device", "test_dialogues", "test_guard", "test_tensors"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts a server takes its time."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"), seed=1)


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def generator(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("logs") / "generator.log"
    with serving("generator", f"--policy={policy_folder}", log=log) as running:
        yield running


@pytest.fixture(scope="session")
def scorer(reward_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving("scorer", f"--reward={reward_folder}", log=tmp_path_factory.mktemp("logs") / "scorer.log") as running:
        yield running
