import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured_squares import make_base, pair, write
from safetensors.torch import load_file, save_file

from vca.errors import ArtifactError, DataError, SettingsError
from vca.progress import Quiet
from vca.records import StageResult
from vca.reward import adapter, train
from vca.reward.model import RewardModel
from vca.reward.scorer import RewardScorer
from vca.reward.settings import RewardSettings

Make = Callable[..., RewardSettings]
PROMPTS = ["red square", "blue square", "a green or a grey square"]


def trained(config: RewardSettings, data: Path, output: Path) -> StageResult:
    return train.run(config, inputs={"data": data}, output=output, progress=Quiet())


@pytest.fixture(scope="session")
def result(data: Path, settings: Make, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    return trained(settings(epochs=15), data, tmp_path_factory.mktemp("out") / "reward")


@pytest.fixture
def images_BCHW() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_it_learns_the_colours_of_squares_never_seen(result: StageResult) -> None:
    overall, before = result.metrics["accuracy"]["overall"], result.metrics["accuracy_base"]["overall"]
    assert overall["value"] > 0.75
    assert overall["low"] > 0.6
    assert overall["value"] > before["value"] + 0.15
    curves = result.metrics["curves"]
    assert len(curves) == 15 * 6
    assert curves[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert curves[-1]["loss"] < 0.4
    assert set(result.metrics["accuracy"]) == {"overall", "edited", "random", "colour"}
    assert set(result.metrics["accuracy_by_source"]) == {"squares", "others"}


def test_the_folder_is_complete_and_vouched_for(result: StageResult, base: str) -> None:
    marker = adapter.verify(result.output)
    assert marker["base"] == base
    assert marker["data_watermark"] == "squares@1"
    assert {"adapter_model.safetensors", "head.safetensors", "calibration.json", "metrics.json", "README.md"} <= set(
        marker["files"]
    )
    assert json.loads((result.output / "metrics.json").read_text()) == json.loads(json.dumps(result.metrics))
    assert "| overall |" in (result.output / "README.md").read_text()
    assert not [f for f in result.output.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(result.output.glob(".writing-*"))


def test_calibration_is_mean_and_spread_of_the_validation_scores(result: StageResult, data: Path) -> None:
    from vca.reward.pairs import load_pairs

    scorer = RewardScorer.load(result.output)
    pairs = load_pairs(data, role="validation")
    raw = torch.cat(
        [
            scorer.score(
                prompts=[p.prompt for p in pairs.pairs],
                images_BCHW=pairs.images_BCHW([getattr(p, side) for p in pairs.pairs], size=64),
            ).raw_B
            for side in ("w", "l")
        ]
    )
    assert scorer.calibration.mu == pytest.approx(float(raw.mean()), abs=1e-4)
    assert scorer.calibration.s == pytest.approx(float(raw.std(unbiased=False)), rel=1e-3)
    assert scorer.calibration.n == len(raw)


def test_calibrated_scores_are_clamped(result: StageResult, images_BCHW: torch.Tensor) -> None:
    scorer = RewardScorer.load(result.output)
    scores = scorer.score(prompts=PROMPTS, images_BCHW=images_BCHW)
    expected = ((scores.raw_B - scorer.calibration.mu) / scorer.calibration.s).clamp(-4, 4)
    assert torch.equal(scores.calibrated_B, expected)
    scorer.calibration = adapter.Calibration(mu=0.0, s=1e-6, n=1)
    assert set(scorer.score(prompts=PROMPTS, images_BCHW=images_BCHW).calibrated_B.abs().tolist()) == {4.0}


@pytest.mark.parametrize(("head", "pooling"), [("linear", "last"), ("hidden_mean", "mean"), ("vocab_mean", "last")])
def test_saved_and_loaded_scores_are_equal(
    head: str, pooling: str, settings: Make, images_BCHW: torch.Tensor, tmp_path: Path
) -> None:
    model = RewardModel(settings=settings(head=head, pooling=pooling))
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        before = model(prompts=PROMPTS, image_tokens_BID=model.reader.image_tokens(images_BCHW=images_BCHW))
    calibration = adapter.Calibration(mu=0.5, s=2.0, n=3)
    adapter.save(folder=tmp_path / "a", model=model, calibration=calibration, metrics={}, card="", watermark="w")
    scorer = RewardScorer.load(tmp_path / "a")
    assert scorer.calibration == calibration
    after = scorer.score(prompts=PROMPTS, images_BCHW=images_BCHW).raw_B
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    assert float(before.std()) > 0


def test_the_score_can_be_pushed_up_through_the_pixels(result: StageResult, images_BCHW: torch.Tensor) -> None:
    scorer = RewardScorer.load(result.output)
    images = (images_BCHW[:1] * 0.2 + 0.4).requires_grad_(True)
    before = scorer.score(prompts=["red square"], images_BCHW=images).raw_B.sum()
    before.backward()
    assert images.grad is not None
    pushed = (images + 0.05 * images.grad.sign()).detach()
    after = scorer.score(prompts=["red square"], images_BCHW=pushed)
    assert float(after.raw_B) > float(before)
    assert not after.raw_B.requires_grad


def test_more_rows_than_one_forward_pass_keep_their_order(result: StageResult) -> None:
    scorer = RewardScorer.load(result.output)
    images = torch.rand(70, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    many = scorer.score(prompts=[PROMPTS[i % 3] for i in range(70)], images_BCHW=images).raw_B
    few = scorer.score(prompts=[PROMPTS[i % 3] for i in range(66, 70)], images_BCHW=images[66:]).raw_B
    assert float((many[66:] - few).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="one prompt per image"):
        scorer.score(prompts=PROMPTS, images_BCHW=images)


def test_the_same_seed_gives_the_same_model_and_micro_batches_change_nothing(
    data: Path, settings: Make, tmp_path: Path
) -> None:
    one = trained(settings(), data, tmp_path / "one").metrics["curves"]
    same = trained(settings(), data, tmp_path / "same").metrics["curves"]
    assert one == same
    split = trained(settings(micro_batch=2), data, tmp_path / "split").metrics["curves"]
    assert [c["loss"] for c in split] == pytest.approx([c["loss"] for c in one], rel=1e-3)


def test_training_leaves_the_base_as_it_was(data: Path, settings: Make) -> None:
    model = RewardModel(settings=settings())
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    pairs = train.load_pairs(data, role="reward")
    tokens = train.ImageTokens(pairs, reader=model.reader, cache_mb=10, progress=Quiet(), name="x")
    me = train.Process(rank=0, world=1, device="cpu")
    train.train(model, train.Examples(set=pairs, tokens=tokens), me=me, progress=Quiet())
    assert not model.training
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_gradient_checkpointing_and_bfloat16_learn_too(data: Path, settings: Make, tmp_path: Path) -> None:
    config = settings(gradient_checkpointing=True, compute_dtype="bfloat16", epochs=6)
    curves = trained(config, data, tmp_path / "r").metrics["curves"]
    assert curves[-1]["loss"] < curves[0]["loss"] - 0.1


def test_the_rate_rises_then_falls_as_a_cosine() -> None:
    rates = [train.rate(step, steps=10, warmup=2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert train.rate(10, steps=10, warmup=2) == pytest.approx(0.0)


def test_labels_the_wrong_way_round_are_noticed(data: Path, settings: Make, tmp_path: Path) -> None:
    from vca.data.shards import read_pairs

    turned = [
        pair(int(p.pair_id.split("-")[1]), positive=p.negative, negative=p.positive)
        for p in read_pairs(data, role="reward")
    ]
    kept = [p for role in ("validation", "test") for p in read_pairs(data, role=role)]  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="which way round"):
        trained(settings(epochs=12), write(tmp_path / "d", [*turned, *kept]), tmp_path / "r")
    assert not (tmp_path / "r" / "adapter.json").exists()


def test_a_model_that_scores_everything_alike_is_refused() -> None:
    with pytest.raises(ArtifactError, match="learned nothing"):
        train._calibrate([0.25] * 10)


def test_training_that_breaks_says_what_to_lower(
    data: Path, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = train.losses.loss
    monkeypatch.setattr(train.losses, "loss", lambda *a, **k: loss(*a, **k) * torch.inf)
    with pytest.raises(SettingsError, match=r"lower reward\.learning_rate"):
        trained(settings(), data, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_few_broken_steps_are_skipped(
    data: Path, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = train.losses.loss, iter(range(1000))
    monkeypatch.setattr(train.losses, "loss", lambda *a, **k: loss(*a, **k) * (torch.nan if next(calls) == 1 else 1))
    metrics = trained(settings(epochs=2), data, tmp_path / "r").metrics
    assert metrics["skipped_steps"] == 1
    assert "NaN" not in (tmp_path / "r" / "metrics.json").read_text()


def test_missing_pairs_stop_before_training(tmp_path: Path, settings: Make) -> None:
    folder = write(tmp_path / "d", [pair(0, role="reward"), pair(1, role="validation")])
    with pytest.raises(DataError, match="no test pairs"):
        trained(settings(), folder, tmp_path / "r")


@pytest.fixture
def copy(result: StageResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result.output, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors", "calibration.json", "adapter.json"])
def test_a_damaged_or_missing_file_is_refused(name: str, copy: Path) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2] + b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        RewardScorer.load(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        RewardScorer.load(copy)


def test_a_file_outside_the_folder_is_never_opened(copy: Path) -> None:
    marker: dict[str, Any] = json.loads((copy / "adapter.json").read_text())
    marker["files"]["../secret"] = "0" * 64
    (copy / "adapter.json").write_text(json.dumps(marker))
    with pytest.raises(ArtifactError, match="missing or damaged"):
        RewardScorer.load(copy)


def test_another_base_is_refused(data: Path, settings: Make, tmp_path: Path, result: StageResult, copy: Path) -> None:
    base = make_base(tmp_path / "base", seed=0)
    marker = json.loads((copy / "adapter.json").read_text())
    marker["settings"]["base"] = str(base)
    (copy / "adapter.json").write_text(json.dumps(marker))
    RewardScorer.load(copy)  # the same weights elsewhere are the same base
    weights = load_file(base / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="another base model"):
        RewardScorer.load(copy)


def test_an_interrupted_save_leaves_no_adapter(
    result: StageResult, copy: Path, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel(settings=settings())
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if str(target).endswith("calibration.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        adapter.save(
            folder=copy,
            model=model,
            calibration=adapter.Calibration(mu=0, s=1, n=1),
            metrics={},
            card="",
            watermark="w",
        )
    with pytest.raises(ArtifactError, match="no complete reward adapter"):
        RewardScorer.load(copy)


TWO = """
import sys, torch
from pathlib import Path
from vca.progress import Quiet
from vca.reward.settings import RewardSettings
from vca.reward.train import run
config = RewardSettings.model_validate_json(Path(sys.argv[1]).read_text())
result = run(config, inputs={"data": Path(sys.argv[2])}, output=Path(sys.argv[3]), progress=Quiet())
sys.stdout.write(f"{result.metrics['accuracy']['overall']['value']}\\n")  # at once: two processes share a pipe
"""


@pytest.mark.slow
def test_two_processes_train_one_model(data: Path, settings: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(settings(epochs=12, micro_batch=4).model_dump_json())
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / "reward"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command += [str(tmp_path / "two.py"), str(tmp_path / "config.json"), str(data), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = [float(line) for line in done.stdout.split()]
    assert len(figures) == 2
    assert figures[0] == figures[1] > 0.75  # both saw all test pairs, judged by the same weights
    assert json.loads((out / "metrics.json").read_text())["accuracy"]["overall"]["n"] == 40
    RewardScorer.load(out)
