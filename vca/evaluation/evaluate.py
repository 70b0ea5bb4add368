"""The evaluation stage: base against trained policy on held-out prompts and dialogues, same prompts, same noise.

Validation data decide the LoRA scale and what satisfies a person; test data are only measured. Writes
`evaluation.json`, `pictures/*.png` and `policy/`, the adapter with the chosen scale. N prompts.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vca.data.images import decode
from vca.data.shards import read_dialogues
from vca.errors import DataError, SettingsError
from vca.evaluation import scale as scales
from vca.evaluation.judges import content_scores, load_content_judge
from vca.evaluation.metrics import Labels, at_equal_style
from vca.evaluation.painter import Painter
from vca.evaluation.panel import Panel, Verdicts
from vca.evaluation.selection import top_three_of, win_rates
from vca.evaluation.settings import EvaluationSettings
from vca.evaluation.simulated_user import Session, lead
from vca.evaluation.statistics import Array, Compared, compare
from vca.models.judge import Judge
from vca.models.stable_diffusion import StableDiffusion, load_adapter, load_pipeline, set_adapter_scale
from vca.progress import Progress
from vca.records import Dialogue, StageResult
from vca.reward.scorer import RewardScorer
from vca.store import write_json

Hits = NDArray[np.bool_]
RESULT, PICTURES, POLICY = "evaluation.json", "pictures", "policy"


def run(config: EvaluationSettings, *, inputs: dict[str, Path], output: Path, progress: Progress) -> StageResult:
    """inputs: data (prepared folder), reward and policy (adapters). Errors: ArtifactError, DataError, SettingsError."""
    shipped = Judge.load()
    if config.taste is not None and config.taste not in shipped.styles:
        raise SettingsError(f"evaluation.taste {config.taste!r}: the style judge knows {', '.join(shipped.styles)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_pipeline(config.base, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    load_adapter(pipeline, inputs["policy"])
    panel = Panel(
        content=load_content_judge(config.content_judge, shipped=shipped),
        shipped=shipped,
        reward=RewardScorer.load(inputs["reward"], device=device),
    )
    painter = Painter(
        pipeline=pipeline,
        steps=config.steps,
        guidance=config.guidance,
        eta=config.eta,
        batch=config.batch,
        seed=config.seed,
    )
    evaluation = Evaluation(config=config, painter=painter, panel=panel, progress=progress)
    found = evaluation.measure(
        validation=_dialogues(inputs["data"], "validation"), test=_dialogues(inputs["data"], "test"), output=output
    )
    shutil.copytree(inputs["policy"], output / POLICY, ignore=shutil.ignore_patterns("checkpoints", "stage.json"))
    set_adapter_scale(output / POLICY, scale=found["scale"]["chosen"])
    write_json(output / RESULT, found)
    return StageResult(output=output, metrics={"policy": found["policy"], "scale": found["scale"]["chosen"]})


def _dialogues(folder: Path, role: Any) -> list[Dialogue]:
    dialogues = sorted(read_dialogues(folder, role=role), key=lambda d: d.dialogue_id)
    if not dialogues:
        raise DataError(f"{folder} holds no {role} dialogues; prepare more data or a larger {role} share")
    return dialogues


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, apart from where things are loaded from."""

    config: EvaluationSettings
    painter: Painter
    panel: Panel
    progress: Progress

    @property
    def taste(self) -> int | None:
        return None if self.config.taste is None else self.panel.shipped.styles.index(self.config.taste)

    def measure(self, *, validation: list[Dialogue], test: list[Dialogue], output: Path) -> dict[str, Any]:
        config = self.config
        threshold = self.threshold(validation)
        with self.progress.task("validation pictures", 1 + len(config.scales), "scales") as task:
            every = self.prompts(validation, config.validation_prompts)
            prompts = list(islice(cycle(every), config.validation_prompts))

            def verdicts(scale: float) -> Verdicts:
                seen = self.look(prompts, scale=scale, name="validation")[0]
                task.advance()
                return seen

            found = scales.candidates(
                config.scales, verdicts=verdicts, taste=self.taste, tolerance=config.content_tolerance
            )
        scale = scales.choose(found)
        prompts = self.prompts(test, config.prompts)
        with self.progress.task("held-out pictures", 2, "policies") as task:
            base, trained = (self.look(prompts, scale=s, name="test", task=task)[0] for s in (0.0, scale))
        figures, counts = self.compare_prompts(base, trained)

        led = random.Random(config.seed).sample(test, min(config.dialogues, len(test)))
        sessions = [self.sessions(led, scale=s, threshold=threshold) for s in (0.0, scale)]
        figures |= self.compare_sessions(*sessions)
        return {
            "policy": figures,
            "scale": {"chosen": scale, "candidates": found, "tolerance": config.content_tolerance},
            "threshold": threshold,
            "counts": {"prompts": len(prompts), "dialogues": len(led), **counts},
            "sessions": {name: self.describe(part) for name, part in zip(("base", "trained"), sessions, strict=True)},
            "win_rates": win_rates(base=sessions[0], trained=sessions[1], rounds=config.win_rounds),
            "selection": self.selection(prompts, scale=scale),
            "dialogues": self.show(*sessions, output=output),
        }

    def prompts(self, dialogues: list[Dialogue], number: int) -> list[str]:
        """Up to `number` different prompts of these dialogues; with a taste, without the words that name a style."""
        every = {turn.refined_prompt for dialogue in dialogues for turn in dialogue.turns}
        if self.config.taste is not None:
            named = re.compile(rf",?\s*\b(?:{'|'.join(self.panel.shipped.styles)}) style\b")
            every = {named.sub("", text) for text in every} - {""}
        return random.Random(self.config.seed).sample(sorted(every), min(number, len(every)))

    def look(self, prompts: list[str], *, scale: float, name: str, task: Any = None) -> tuple[Verdicts, Tensor]:
        """Draw one picture per prompt and have it judged."""
        with self.painter.policy(scale):
            keys = [f"{name} {number} {prompt}" for number, prompt in enumerate(prompts)]
            drawn = self.painter.paint(prompts=prompts, keys=keys)
        seen = self.panel.look(prompts=prompts, images_BCHW=drawn.images_BCHW)
        if task is not None:
            task.advance()
        return seen, drawn.images_BCHW

    def threshold(self, validation: list[Dialogue]) -> float:
        """The content score that satisfies a person: a percentile of what the base draws of validation intents.

        Set by the base and by validation data alone, so that it is the same for both policies.
        """
        intents = [d.intent for d in validation][: self.config.validation_prompts]
        with self.painter.policy(0.0):
            drawn = self.painter.paint(prompts=intents, keys=[f"threshold {at}" for at in range(len(intents))])
        scores = content_scores(self.panel.content, prompts=intents, images_BCHW=drawn.images_BCHW)
        return float(np.percentile(scores.numpy(), self.config.satisfied_percentile))

    def paired(self, base_N: Array | Hits, trained_N: Array | Hits) -> Compared:
        config = self.config
        return compare(
            base_N=base_N.astype(np.float64),
            trained_N=trained_N.astype(np.float64),
            seed=config.seed,
            resamples=config.bootstrap,
            confidence=config.confidence,
        )

    def compare_prompts(self, base: Verdicts, trained: Verdicts) -> tuple[dict[str, Compared], dict[str, Any]]:
        figures = {
            "preference_score": self.paired(base.reward_N, trained.reward_N),
            "content_judge": self.paired(base.content_N, trained.content_N),
        }
        styles = self.panel.shipped.styles
        for k in (1, 5, 10):
            figures[f"recall_at_{k}"] = self.paired(base.rank_N < k, trained.rank_N < k)
        if self.taste is not None:
            figures["taste_share"] = self.paired(base.taste_N(self.taste), trained.taste_N(self.taste))
            figures["content_judge_equal_style"] = at_equal_style(
                base_N=base.content_N,
                trained_N=trained.content_N,
                base_style_N=base.style_N,
                trained_style_N=trained.style_N,
                styles=len(styles),
                seed=self.config.seed,
                resamples=self.config.bootstrap,
                confidence=self.config.confidence,
            )

        def shares(style_N: Labels) -> dict[str, float]:
            return {style: float((style_N == at).mean()) for at, style in enumerate(styles)}

        return figures, {"styles": {"base": shares(base.style_N), "trained": shares(trained.style_N)}}

    def sessions(self, dialogues: list[Dialogue], *, scale: float, threshold: float) -> list[Session]:
        name = "dialogues, trained" if scale else "dialogues, base"
        with self.progress.task(name, None, "pictures") as task, self.painter.policy(scale):
            return lead(
                dialogues,
                paint=self.painter.paint,
                appraise=self.panel.appraise,
                threshold=threshold,
                config=self.config,
                on_round=task.advance,
            )

    def compare_sessions(self, base: list[Session], trained: list[Session]) -> dict[str, Compared]:
        """Rounds to satisfaction, and the distance between consecutive rounds over the rounds that both people had."""
        cap = self.config.max_rounds
        rounds = [np.array([s.rounds(cap=cap) for s in part], float) for part in (base, trained)]
        both = [(a, b) for a, b in zip(base, trained, strict=True) if min(len(a.shown), len(b.shown)) > 1]
        figures = {"rounds_to_satisfaction": self.paired(*rounds)}
        if both:
            steps = [min(len(a.shown), len(b.shown)) for a, b in both]
            figures["lpips_style"] = self.paired(
                *(self.moves([pair[which] for pair in both], steps) for which in (0, 1))
            )
        return figures

    def moves(self, sessions: list[Session], steps: Sequence[int]) -> Array:
        """Mean distance between consecutive pictures over each session's first `steps` rounds, [sessions]."""
        left = [shown.image_CHW for s, n in zip(sessions, steps, strict=True) for shown in s.shown[: n - 1]]
        right = [shown.image_CHW for s, n in zip(sessions, steps, strict=True) for shown in s.shown[1:n]]
        distance = self.panel.shipped.distance(left_BCHW=torch.stack(left), right_BCHW=torch.stack(right)).numpy()
        parts = np.split(distance, np.cumsum([n - 1 for n in steps])[:-1])
        return np.array([part.mean() for part in parts])

    def describe(self, sessions: list[Session]) -> dict[str, Any]:
        """How the people fared: shares satisfied and giving up, and how many needed how many rounds."""
        satisfied = [len(session.shown) for session in sessions if session.satisfied]
        return {
            "satisfied": len(satisfied) / len(sessions),
            "censored": 1 - len(satisfied) / len(sessions),
            "rounds": {number: satisfied.count(number) for number in range(1, self.config.max_rounds + 1)},
        }

    def selection(self, prompts: list[str], *, scale: float) -> dict[str, Any]:
        """Top 3 of n (figure 6), drawn by the served policy; empty where it is switched off."""
        config = self.config
        chosen = prompts[: config.selection_prompts]
        if not chosen or not config.selection_images:
            return {}
        most = max(config.selection_images)
        texts = [prompt for prompt in chosen for _ in range(most)]
        with self.painter.policy(scale):
            images = self.painter.paint(
                prompts=texts, keys=[f"selection {at} {text}" for at, text in enumerate(texts)]
            ).images_BCHW
        reward = self.panel.rewards(prompts=texts, images_BCHW=images).reshape(-1, most)
        judge = content_scores(self.panel.content, prompts=texts, images_BCHW=images).double().numpy().reshape(-1, most)
        rng = np.random.default_rng(config.seed)
        return {str(n): top_three_of(n, reward_PN=reward, judge_PN=judge, rng=rng) for n in config.selection_images}

    def show(self, base: list[Session], trained: list[Session], *, output: Path) -> list[dict[str, Any]]:
        """Whole dialogues with their pictures on disk: the first ones of the random order, not picked."""
        folder = output / PICTURES
        folder.mkdir(parents=True, exist_ok=True)
        shown = []
        for number, (one, other) in enumerate(zip(base, trained, strict=True)):
            if number == self.config.shown_dialogues:
                break
            entry: dict[str, Any] = {
                "dialogue_id": one.dialogue.dialogue_id,
                "intent": one.dialogue.intent,
                "wanted_style": one.wanted_style,
                "style_named": one.dialogue.style is not None,
                "target": None,
            }
            target = one.dialogue.turns[-1].target
            if target is not None:
                entry["target"] = _save(
                    _pixels(target.data, self.painter.pipeline), folder / f"{number:02d}-target.png"
                )
            for name, session in (("base", one), ("trained", other)):
                entry[name] = {
                    "satisfied": session.satisfied,
                    "rounds": [
                        {
                            "feedback": s.feedback,
                            "prompt": s.prompt,
                            "content": s.content,
                            "style": s.style,
                            "picture": _save(s.image_CHW, folder / f"{number:02d}-{name}-{at:02d}.png"),
                        }
                        for at, s in enumerate(session.shown, 1)
                    ],
                }
            shown.append(entry)
        return shown


def _pixels(data: bytes, pipeline: StableDiffusion) -> Tensor:
    """[3,H,W] in [0,1] at the size that the autoencoder decodes the policy's latents to."""
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    image = decode(data, size=pipeline.latent_shape[1] * factor)
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def _save(image_CHW: Tensor, path: Path) -> str:
    """Write a PNG; its path relative to the evaluation folder."""
    array = (image_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path, optimize=True)
    return f"{PICTURES}/{path.name}"
