"""P11, P12, P14: it learns, it goes on after a crash, and several processes do what one does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import corpus, log, lora_vector, redness, settings, trainer
from training_process import finish, training

from vca.diffusion import dialogues as d
from vca.diffusion.rollout import play
from vca.errors import ArtifactError, Interrupted
from vca.models.stable_diffusion import StableDiffusion, load_pipeline
from vca.progress import Quiet

# Everything that has a state: two rounds, features, an average, a divergence, real pictures, several steps a rollout.
ALL = {
    "iterations": 4,
    "rounds": 2,
    "batch": 8,
    "ema": 0.9,
    "kl_weight": 0.1,
    "noise_weight": 0.1,
    "noise_batch": 4,
    "multi_round_weight": 0.1,
    "checkpoint_every": 1,
}


@pytest.mark.slow
def test_p11_it_learns_and_does_not_from_permuted_rewards(tiny_folder: Path, tmp_path: Path) -> None:
    def rise(name: str, **changes: Any) -> torch.Tensor:
        pipeline = load_pipeline(str(tiny_folder))
        run = trainer(
            pipeline,
            tmp_path / name,
            iterations=30,
            dialogues=4,
            siblings=8,
            batch=32,
            micro_batch=32,
            window=(4, 5),
            learning_rate=5e-3,
            weights="custom",
            custom_weights={"div": [0], "cons": [0], "mi": [1]},
            feature="latent",
            **changes,
        )
        turns = d.batch(corpus(), iteration=100, dialogues=4, seed=5)
        before = play(pipeline, run.session.config, turns, reward=redness).score_N
        run.train(progress=Quiet())
        return play(pipeline, run.session.config, turns, reward=redness).score_N - before

    learned, control = rise("learned"), rise("control", permute_rewards=True)
    sigma = learned.std() / len(learned) ** 0.5
    assert learned.mean() > 3 * sigma, (learned.mean() / sigma, control.mean() / sigma)
    assert control.mean() < learned.mean() / 3, (learned.mean() / sigma, control.mean() / sigma)


@pytest.mark.parametrize("algorithm", ["ppo", "refl"])
def test_p12_resumed_training_is_bitwise_the_same(tiny_folder: Path, tmp_path: Path, algorithm: str) -> None:
    changes = ALL | {"trainer": algorithm}
    if algorithm == "refl":
        changes |= {"batch": 16, "multi_round_weight": 0, "refl_reward_weight": 1.0}

    def part(name: str, iterations: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pipeline = load_pipeline(str(tiny_folder))
        run = trainer(pipeline, tmp_path / name, targets=True, **changes | {"iterations": iterations})
        run.train(progress=Quiet())
        return lora_vector(pipeline), run.served()

    whole, whole_served = part("whole", 4)
    part("halves", 2)
    halves, halves_served = part("halves", 4)
    assert torch.equal(whole, halves)
    assert all(torch.equal(whole_served[name], halves_served[name]) for name in whole_served)
    assert not torch.equal(whole, torch.cat([t.flatten() for t in whole_served.values()]))
    assert [line["update"] for line in log(tmp_path / "halves")] == [1, 2, 3, 4]
    same = {"reward_mi_mean", "gradient_norm", "noise_loss"}
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "halves"), strict=True):
        assert {name: a[name] for name in same} == {name: b[name] for name in same}


def test_a_checkpoint_of_another_run_is_refused(tiny: StableDiffusion, tmp_path: Path) -> None:
    trainer(tiny, tmp_path, iterations=1).train(progress=Quiet())
    with pytest.raises(ArtifactError, match=r"learning_rate 0\.01, this run has 0\.02"):
        trainer(tiny, tmp_path, learning_rate=0.02)


@pytest.mark.slow
def test_p12_killed_in_the_middle_of_a_step_it_goes_on_bitwise(tiny_folder: Path, tmp_path: Path) -> None:
    expected = finish(tiny_folder, tmp_path / "whole", **ALL)
    # The first rollout scores four times (two rounds, and their intents), every later one twice.
    for scorings in (3, 6):
        with training(tiny_folder, tmp_path / "killed", **ALL) as ((process,), (scored,)):
            for number in range(1, scorings + 1):
                assert scored.recv() == number
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
    (tmp_path / "killed" / "checkpoints" / ".step-00000099").mkdir()  # as a crash while writing leaves it
    assert len(log(tmp_path / "killed")) == 1
    found = finish(tiny_folder, tmp_path / "killed", **ALL)
    assert torch.equal(found["lora"], expected["lora"])
    assert all(torch.equal(found["served"][name], tensor) for name, tensor in expected["served"].items())


@pytest.mark.slow
def test_sigterm_checkpoints_and_exits_with_143(tiny_folder: Path, tmp_path: Path) -> None:
    changes = ALL | {"checkpoint_every": 100}
    expected = finish(tiny_folder, tmp_path / "whole", **changes)
    with training(tiny_folder, tmp_path / "stopped", stop_at=5, **changes) as ((process,), _):
        process.join()
        assert process.exitcode == 143
    assert [p.name for p in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-00000002"]
    assert torch.equal(finish(tiny_folder, tmp_path / "stopped", **changes)["lora"], expected["lora"])


def test_sigterm_in_the_same_process(tiny: StableDiffusion, tmp_path: Path) -> None:
    run = trainer(tiny, tmp_path, iterations=3)
    with pytest.raises(Interrupted, match="stopped after 1 of 3 rollouts") as caught:
        run.train(progress=Quiet(), stopping=lambda: True)
    assert caught.value.exit_code == 143
    assert trainer(tiny, tmp_path, iterations=3).session.iteration == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_p14_two_processes_do_what_one_does(tiny_folder: Path, tmp_path: Path, engine: str) -> None:
    changes = ALL | {"engine": engine, "batch": 16, "micro_batch": 4, "iterations": 2}
    one = finish(tiny_folder, tmp_path / "one", **changes)
    two = finish(tiny_folder, tmp_path / "two", processes=2, **changes)
    start_ = load_pipeline(str(tiny_folder))
    start_.attach_lora(rank=4, alpha=4, seed=0)
    moved = one["lora"] - lora_vector(start_)
    assert moved.norm() > 0
    assert (two["lora"] - one["lora"]).norm() < 1e-2 * moved.norm()
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        for name in ("reward_mi_mean", "reward_div_mean", "reward_cons_std", "advantage_std", "share_div"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name


@pytest.mark.slow
def test_deepspeed_resumes_bitwise_and_equals_torch(tiny_folder: Path, tmp_path: Path) -> None:
    changes = ALL | {"iterations": 2}
    torch_ = finish(tiny_folder, tmp_path / "torch", **changes)
    whole = finish(tiny_folder, tmp_path / "whole", engine="deepspeed", **changes)
    assert torch.allclose(whole["lora"], torch_["lora"], atol=1e-5)
    finish(tiny_folder, tmp_path / "halves", engine="deepspeed", **changes | {"iterations": 1})
    halves = finish(tiny_folder, tmp_path / "halves", engine="deepspeed", **changes)
    assert torch.equal(halves["lora"], whole["lora"])


def test_the_clip_acts_with_several_steps_a_rollout(tiny: StableDiffusion, tmp_path: Path) -> None:
    trainer(tiny, tmp_path, iterations=2, updates_per_rollout=3, learning_rate=0.05, clip_range=1e-5).train(
        progress=Quiet()
    )
    last = log(tmp_path)[-1]
    assert last["clipped_high"] > 0
    assert last["clipped_low"] > 0
    assert last["ratio_std"] > 0


def test_a_lone_chain_is_compared_with_earlier_ones(tiny: StableDiffusion, tmp_path: Path) -> None:
    run = trainer(tiny, tmp_path, iterations=4, siblings=1, batch=2, micro_batch=2)
    run.train(progress=Quiet())
    assert run.session.history.by_prompt.keys() == {script.prompts[0] for script in corpus().scripts}
    assert log(tmp_path)[-1]["advantage_std"] > 0


def test_the_divergence_holds_the_policy_back(tiny_folder: Path, tmp_path: Path) -> None:
    found = {}
    for weight in (1e-6, 100.0):
        pipeline = load_pipeline(str(tiny_folder))
        trainer(pipeline, tmp_path / str(weight), iterations=4, kl_weight=weight).train(progress=Quiet())
        lines = log(tmp_path / str(weight))
        assert lines[0]["kl_base"] == 0
        found[weight] = lines[-1]["kl_base"]
    assert 0 < found[100.0] < found[1e-6] / 2


def test_the_log_has_every_health_figure(tiny: StableDiffusion, tmp_path: Path) -> None:
    trainer(tiny, tmp_path, targets=True, **ALL | {"iterations": 1}).train(progress=Quiet())
    expected = {
        *(f"reward_{name}_{what}" for name in ("div", "cons", "mi", "intent") for what in ("mean", "std")),
        *("share_div", "share_cons", "share_mi", "advantage_std", "still_groups", "latent_max"),
        *("ratio_mean", "ratio_std", "ratio_max", "clipped_high", "clipped_low", "approx_kl", "kl_base"),
        *("gradient_norm", "lora_norm", "noise_loss", "contrast_mean", "saturation_mean", "seconds"),
    }
    (line,) = log(tmp_path)
    assert expected <= line.keys()
    assert sum(line[f"share_{name}"] for name in ("div", "cons", "mi")) == pytest.approx(1)


def test_impossible_settings_are_refused_with_what_is_allowed() -> None:
    for changes, allowed in (
        ({"batch": 7}, "divisors of 8"),
        ({"micro_batch": 3}, "multiples of 3"),
        ({"processes": 3}, "multiples of 3"),
        ({"window": (3, 9)}, r"steps \(5\)"),
        ({"steps_per_sample": 4}, "1 to 3"),
        ({"rounds": 2, "batch": 16, "strength": (0.1, 0.8), "strength_floor": 0.1}, "low to 1 or less"),
        ({"eta": 0}, "0 < eta <= 1"),
        ({"siblings": 1, "batch": 2, "micro_batch": 2, "combine": "advantage_sum"}, "combine reward_sum"),
        ({"trainer": "refl", "micro_batch": 2}, "multiples of siblings"),
        ({"reward_image": "x0_next"}, "allowed is 1"),
    ):
        with pytest.raises(ValueError, match=allowed):
            settings(**changes)
    assert "2 dialogues × 4 siblings × 1 rounds = 8 pictures" in settings().arithmetic(world=1)
