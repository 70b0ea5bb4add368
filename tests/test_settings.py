"""Presets, files and overrides; and refusals that name the key, what was given and what is allowed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.errors import SettingsError
from vca.settings import PRESETS, Settings, arithmetic, load, overrides_of


def refusal(**options: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_survives_json(preset: str) -> None:
    settings = load(preset=preset)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_the_paper_preset_is_the_paper() -> None:
    """Section 4: T=70, [1,40], LoRA rank 4, batch 64, lr 3e-4; QLoRA r=64 α=16, batch 128; 80/20, 38 %, 17 %."""
    paper = load(preset="paper")
    d, r = paper.diffusion, paper.reward
    assert (d.steps, d.window, d.lora_rank, d.lora_alpha, d.batch, d.learning_rate) == (70, (1, 40), 4, 4.0, 64, 3e-4)
    assert (d.processes, d.trainer, d.eta, d.steps_per_sample, d.siblings, d.guidance) == (4, "ppo", 1.0, 1, 8, 5.0)
    assert (d.combine, d.weights, d.round_offset, d.reward_image, d.kl_weight, d.ema) == (
        "reward_sum",
        "paper",
        1,
        "final",
        0.0,
        0.0,
    )
    assert (r.lora_rank, r.lora_alpha, r.batch, r.epochs, r.head, r.pooling, r.loss) == (
        64,
        16.0,
        128,
        1,
        "hidden_mean",
        "mean",
        "dpo",
    )
    assert (paper.data.test_fraction, paper.data.reward_fraction, paper.data.diffusion_fraction) == (0.2, 0.38, 0.17)


def test_recommended_trains_the_noisy_half_with_guards() -> None:
    r = load(preset="recommended")
    low, high = r.diffusion.window
    assert (low, high) == (round(0.4 * r.diffusion.steps), r.diffusion.steps)
    assert 20 <= r.diffusion.steps <= 30
    assert 0.01 <= r.diffusion.kl_weight <= 0.04
    assert (r.diffusion.ema, r.diffusion.combine, r.diffusion.lora_rank) == (0.99, "advantage_sum", 16)
    assert (r.reward.head, r.reward.pooling, r.reward.loss) == ("linear", "last", "dpo")


def test_a_file_stands_over_the_preset_and_set_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("diffusion: {learning_rate: 1e-5, iterations: 3}\nreward: {batch: 64, micro_batch: 16}\n")
    settings = load(preset="local", file=file, overrides=["diffusion.iterations=4"])
    assert (settings.diffusion.learning_rate, settings.diffusion.iterations) == (1e-5, 4)
    assert settings.reward.batch == 64
    assert settings.diffusion.base == load(preset="local").diffusion.base
    # As the pipeline takes them: one list of overrides.
    assert load(preset="local", overrides=[*overrides_of(file), "diffusion.iterations=4"]) == settings


def test_the_seed_reaches_every_stage_that_sets_none() -> None:
    settings = load(overrides=["seed=7", "reward.seed=3"])
    seeds = (settings.seed, settings.data.seed, settings.reward.seed, settings.diffusion.seed, settings.evaluation.seed)
    assert seeds == (7, 7, 3, 7, 7)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "diffusion.lr=1e-4",
            ["unknown key diffusion.lr", "did you mean", "diffusion.learning_rate", "keys of diffusion: "],
        ),
        ("reward.haed=linear", ["unknown key reward.haed (did you mean reward.head", "keys of reward"]),
        ("reword.head=linear", ["unknown key reword (did you mean reward?)", "top-level keys: seed, data"]),
        ("data.sources=[{kind: dialogues, pth: x}]", ["pth", "did you mean", "path"]),
        ("diffusion.learning_rate=fast", ["diffusion.learning_rate: got 'fast'", "float > 0 and <= 1", "AdamW"]),
        ("diffusion.learning_rate=true", ["diffusion.learning_rate: got True", "number"]),
        ("diffusion.iterations=2.5", ["diffusion.iterations: got 2.5", "int >= 1"]),
        ("diffusion.iterations='3'", ["diffusion.iterations: got '3'", "int >= 1"]),
        ("diffusion.learning_rate=7", ["diffusion.learning_rate: got 7", "<= 1"]),
        ("reward.head=quadratic", ["reward.head: got 'quadratic'", "'hidden_mean', 'vocab_mean', 'linear'"]),
        ("seed=-1", ["seed: got -1", ">= 0"]),
        ("reward=3", ["reward: got 3"]),
        ("data.sources=[{kind: imagereward, path: x}]", ["data.sources.0", "imagereward", "'image_reward'"]),
        ("diffusion.batch=63", ["diffusion", "63", "divisors of"]),
        ("reward.batch=33", ["reward.batch 33", "reward.micro_batch"]),
        ("evaluation.base=other/model", ["evaluation.base 'other/model'", "diffusion.base"]),
        ("refine.backend=endpoint", ["refine", "endpoint_url", "model"]),
        ("nonsense", ["--set 'nonsense'", "key=value"]),
        ("diffusion.window=[1, 2", ["is not YAML"]),
    ],
)
def test_a_refusal_names_the_key_what_was_given_and_what_is_allowed(override: str, told: list[str]) -> None:
    text = refusal(overrides=[override])
    assert [part for part in told if part not in text] == [], text


def test_a_wrong_preset_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    assert refusal(preset="locla") == "unknown preset 'locla' (did you mean local?); allowed: local, recommended, paper"
    assert "cannot be read" in refusal(file=tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "expected" in refusal(file=tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "is not YAML" in refusal(file=tmp_path / "broken.yaml")


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    assert "is not YAML" in refusal(file=tmp_path / "evil.yaml")
    assert not (tmp_path / "made").exists()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
        max_leaves=4,
    )
)
def test_whatever_is_given_for_a_section_it_loads_or_is_refused(value: Any) -> None:
    with contextlib.suppress(SettingsError):  # any other exception is a crash in front of the user
        load(overrides=[f"reward={json.dumps(value)}"])


def test_the_arithmetic_of_batches_adds_up() -> None:
    reward, diffusion = arithmetic(load(preset="paper"))
    assert reward == "reward: 128 pairs = 4 in a micro-batch × 32 accumulated × 1 process"
    assert (
        "128 pictures a rollout, 2 optimizer step(s) of 64 pictures = 16 in a micro-batch × 1 accumulated × 4"
        in diffusion
    )
