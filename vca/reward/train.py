"""Reward training: from preference pairs to an adapter that scores prompt and image.

Per optimizer step: a batch of pairs, both pictures of each as rows of one forward pass, the loss against the base as
reference, gradients averaged over micro-batches and processes, AdamW with warm-up and cosine. Then calibration on
validation pairs, accuracy on test pairs for the base and the trained model, and the adapter's folder.

Runs in one process, or in several under torchrun, each with its share of the pairs.

Shape suffix: B pairs.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vca.data.shards import read_manifest
from vca.errors import ArtifactError, SettingsError
from vca.progress import Progress, Quiet
from vca.records import Role, StageResult
from vca.reward import adapter, losses
from vca.reward.accuracy import accuracy
from vca.reward.adapter import Calibration
from vca.reward.card import card
from vca.reward.model import RewardModel
from vca.reward.pairs import ImageTokens, Pair, PairSet, batches, load_pairs
from vca.reward.settings import RewardSettings

# Steps with a gradient that is not finite are skipped; more of them than this, and training has failed.
BAD_STEPS = 5
# Pairs per forward pass where nothing is learned.
SCORING_PAIRS = 32


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process among those of one training run."""

    rank: int
    world: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Pairs of one role with what the vision tower says of their images."""

    set: PairSet
    tokens: ImageTokens

    def rows(self, which: Sequence[int]) -> tuple[list[str], Tensor]:
        """Prompts and image tokens of the preferred pictures, then of the others."""
        pairs = [self.set.pairs[n] for n in which]
        images = [pair.w for pair in pairs] + [pair.l for pair in pairs]
        return [pair.prompt for pair in pairs] * 2, self.tokens.of(images)


def run(config: RewardSettings, *, inputs: dict[str, Path], output: Path, progress: Progress) -> StageResult:
    """Train on `inputs["data"]` and leave the adapter in `output`.

    Raises DataError where a role has no pairs, SettingsError where the batch can't be shared by the processes or the
    learning rate breaks training, ArtifactError for damaged data, a missing base, or a model that learned nothing.
    """
    started = time.perf_counter(), time.process_time()
    with _processes() as me:
        progress = progress if me.rank == 0 else Quiet()
        progress.say(f"reward training: {config.arithmetic(world=me.world)}")
        manifest = read_manifest(inputs["data"])
        model = RewardModel(settings=config, device=me.device)

        def examples(role: Role) -> Examples:
            pairs = load_pairs(inputs["data"], role=role, rank=me.rank, world=me.world)
            tokens = ImageTokens(
                pairs, reader=model.reader, cache_mb=config.image_cache_mb, progress=progress, name=role
            )
            return Examples(set=pairs, tokens=tokens)

        test = examples("test")
        base = _accuracy(test, me, _scores(test, score=model.base_match, progress=progress, name="judging as the base"))
        training = examples("reward")
        curves = train(model, training, me=me, progress=progress)
        trained = _accuracy(test, me, _scores(test, score=model, progress=progress, name="judging test pairs"))
        validation = examples("validation")
        r_w, r_l = _scores(validation, score=model, progress=progress, name="calibrating")
        calibration = _calibrate(_gathered(r_w + r_l, me))
        agreement = _accuracy(validation, me, (r_w, r_l))
        _sane(agreement)
        metrics = {
            "accuracy": trained["accuracy"],
            "accuracy_by_source": trained["by_source"],
            "accuracy_by_negative_kind": trained["by_negative_kind"],
            "accuracy_base": base["accuracy"],
            "accuracy_base_by_source": base["by_source"],
            "accuracy_base_by_negative_kind": base["by_negative_kind"],
            "accuracy_validation": agreement["accuracy"],
            "calibration": {"mu": calibration.mu, "s": calibration.s, "n": calibration.n},
            "curves": curves,
            "skipped_steps": sum(not step["applied"] for step in curves),
            "pairs": {
                "reward": manifest.rows(kind="pairs", role="reward"),
                "validation": manifest.rows(kind="pairs", role="validation"),
                "test": manifest.rows(kind="pairs", role="test"),
            },
            "batch": config.arithmetic(world=me.world),
            "trainable_parameters": sum(p.numel() for p in model.trainable()),
            "seconds": {
                "wall": round(time.perf_counter() - started[0], 1),
                "cpu": round(time.process_time() - started[1], 1),
            },
        }
        if me.rank == 0:
            text = card(settings=config, metrics=metrics, watermark=manifest.watermark)
            adapter.save(
                folder=output,
                model=model,
                calibration=calibration,
                metrics=metrics,
                card=text,
                watermark=manifest.watermark,
            )
            overall, before = trained["accuracy"]["overall"]["value"], base["accuracy"]["overall"]["value"]
            progress.say(f"reward accuracy on test pairs: {overall:.3f} (base {before:.3f})")
        _wait(me)
    return StageResult(output=output, metrics=metrics)


def train(model: RewardModel, examples: Examples, *, me: Process, progress: Progress) -> list[dict[str, float | None]]:
    """Train `model` in place; a record of figures per optimizer step (None: not finite). It is left in eval mode."""
    config = model.settings
    accumulation = config.accumulation(world=me.world)
    local = accumulation * config.micro_batch
    plan = [
        batch
        for epoch in range(config.epochs)
        for batch in batches(
            examples.set.pairs, size=local, mix=config.negative_mix, seed=f"{config.seed}/{epoch}/{me.rank}"
        )
    ]
    steps = min(_gathered([len(plan)], me))  # all processes must take the same number of steps
    reference = _reference(model, examples, progress=progress)
    optimizer = torch.optim.AdamW(model.trainable(), lr=config.learning_rate, weight_decay=0.0)
    warmup = math.ceil(config.warmup * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps=steps, warmup=warmup))
    if config.gradient_checkpointing:
        model.reader.model.gradient_checkpointing_enable({"use_reentrant": False})
    curves: list[dict[str, float | None]] = []
    skipped = 0
    torch.manual_seed(config.seed + me.rank)
    model.train()
    with progress.task("learning preferences", steps, "steps") as task:
        for batch in plan[:steps]:
            figures = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
            for start in range(0, local, config.micro_batch):
                micro = batch[start : start + config.micro_batch]
                share = len(micro) / local
                with _precision(config, me):
                    r_w_B, r_l_B = model_pair(model, examples, micro)
                ref_w_B, ref_l_B = reference[micro].to(r_w_B.device).unbind(1)
                pairs = [examples.set.pairs[n] for n in micro]
                loss_B = losses.loss(
                    config.loss,
                    r_w_B=r_w_B,
                    r_l_B=r_l_B,
                    ref_w_B=ref_w_B,
                    ref_l_B=ref_l_B,
                    label_B=r_w_B.new_tensor([pair.label for pair in pairs]),
                    beta=config.beta,
                    smoothing=config.label_smoothing,
                    center=config.center,
                )
                weight_B = loss_B.new_tensor([pair.weight for pair in pairs])
                loss = (loss_B * weight_B).mean()
                torch.autograd.backward(loss * share)
                difference_B = (r_w_B - r_l_B).detach()
                figures["loss"] += float(loss.detach()) * share
                figures["margin"] += float(difference_B.mean()) * share
                figures["accuracy"] += float(((difference_B > 0) + 0.5 * (difference_B == 0)).mean()) * share
            _average_gradients(model, me)
            norm = float(torch.nn.utils.clip_grad_norm_(model.trainable(), config.clip_norm))
            applied = math.isfinite(norm)
            figures |= {"learning_rate": float(schedule.get_last_lr()[0]), "gradient_norm": norm, "applied": applied}
            if applied:
                optimizer.step()
            else:
                skipped += 1
                if skipped > BAD_STEPS:
                    raise SettingsError(
                        f"reward training broke: {skipped} gradients were not finite; "
                        f"lower reward.learning_rate (it is {config.learning_rate:g})"
                    )
            optimizer.zero_grad()
            schedule.step()
            curves.append({name: value if math.isfinite(value) else None for name, value in figures.items()})
            task.advance(loss=figures["loss"], accuracy=figures["accuracy"])
    model.eval()
    return curves


def rate(step: int, *, steps: int, warmup: int) -> float:
    """Learning rate as a share of the highest: a straight rise over `warmup` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def model_pair(model: RewardModel, examples: Examples, which: Sequence[int]) -> tuple[Tensor, Tensor]:
    """r of the preferred and of the other pictures; both are rows of one batch."""
    prompts, tokens = examples.rows(which)
    r_w_B, r_l_B = model(prompts=prompts, image_tokens_BID=tokens).chunk(2)
    return r_w_B, r_l_B


def _reference(model: RewardModel, examples: Examples, *, progress: Progress) -> Tensor:
    """r_ref of both pictures of every pair, float32 [pairs, 2], computed once: it never changes."""
    if model.settings.loss != "dpo" or not bool(model.start_D.any()):
        return torch.zeros(len(examples.set.pairs), 2)  # unused, or a head of zeros: r_ref is 0 exactly
    with model.reference():
        r_w, r_l = _scores(examples, score=model, progress=progress, name="asking the reference")
    return torch.tensor([r_w, r_l]).T.contiguous()


def _scores(
    examples: Examples, *, score: Callable[..., Tensor], progress: Progress, name: str
) -> tuple[list[float], list[float]]:
    """Scores of the preferred and of the other pictures, without gradient."""
    r_w: list[float] = []
    r_l: list[float] = []
    total = len(examples.set.pairs)
    with progress.task(name, total, "pairs") as task, torch.no_grad():
        for start in range(0, total, SCORING_PAIRS):
            which = range(start, min(start + SCORING_PAIRS, total))
            prompts, tokens = examples.rows(which)
            better, worse = score(prompts=prompts, image_tokens_BID=tokens).chunk(2)
            r_w += better.tolist()
            r_l += worse.tolist()
            task.advance(len(which))
    return r_w, r_l


def _accuracy(examples: Examples, me: Process, scores: tuple[list[float], list[float]]) -> dict[str, Any]:
    pairs: list[Pair] = _gathered(examples.set.pairs, me)
    return dict(accuracy(pairs, r_w=_gathered(scores[0], me), r_l=_gathered(scores[1], me)))


def _calibrate(scores: Sequence[float]) -> Calibration:
    values = torch.tensor(scores, dtype=torch.float64)
    s = float(values.std(unbiased=False))
    if not math.isfinite(s) or s == 0:
        raise ArtifactError(
            "the reward model gives every validation picture the same score: it learned nothing, or diverged; "
            "change reward.learning_rate or reward.epochs"
        )
    return Calibration(mu=float(values.mean()), s=s, n=len(scores))


def _sane(agreement: dict[str, Any]) -> None:
    """A model that surely prefers the wrong pictures has its labels or its sign the wrong way round."""
    overall = agreement["accuracy"]["overall"]
    if overall["high"] < 0.5:
        raise ArtifactError(
            f"the reward model prefers the wrong picture of most validation pairs (accuracy {overall['value']:.2f}); "
            "check which way round the labels are"
        )


def _precision(config: RewardSettings, me: Process) -> AbstractContextManager[Any]:
    if config.compute_dtype == "float32":
        return nullcontext()
    return torch.autocast(me.device.split(":")[0], torch.bfloat16)


@contextmanager
def _processes() -> Iterator[Process]:
    """Join the other processes of a torchrun, if there are any."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    cuda = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    if world > 1:
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(device)
    try:
        yield Process(rank=rank, world=world, device=device)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


def _average_gradients(model: RewardModel, me: Process) -> None:
    if me.world > 1:
        for parameter in model.trainable():
            torch.distributed.all_reduce(parameter.grad)
            assert parameter.grad is not None
            parameter.grad /= me.world


def _gathered(values: list[Any], me: Process) -> list[Any]:
    """The lists of all processes, one after the other."""
    if me.world == 1:
        return values
    parts: list[Any] = [None] * me.world
    torch.distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def _wait(me: Process) -> None:
    if me.world > 1:
        torch.distributed.barrier()
