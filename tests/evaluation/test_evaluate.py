"""The whole measurement on a random Stable Diffusion of a few thousand weights and the shipped judges."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vca.evaluation.evaluate import Evaluation
from vca.evaluation.painter import Painter
from vca.evaluation.panel import Panel
from vca.evaluation.settings import EvaluationSettings
from vca.models.judge import Judge
from vca.models.stable_diffusion import StableDiffusion
from vca.progress import Quiet
from vca.records import Dialogue, Picture, Turn

CONFIG = EvaluationSettings(
    taste="fluent",
    steps=3,
    guidance=1.0,
    batch=16,
    prompts=12,
    dialogues=5,
    validation_prompts=10,
    scales=(0.5, 1.0),
    content_tolerance=1.0,
    max_rounds=5,
    selection_prompts=2,
    selection_images=(4, 6),
    win_rounds=3,
    bootstrap=200,
    shown_dialogues=2,
)


class Brightness:
    """Stands where the reward model does: brighter is better."""

    def score(self, *, prompts: list[str], images_BCHW: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(calibrated_B=images_BCHW.mean((1, 2, 3)))


def dialogues(name: str, subjects: list[str]) -> list[Dialogue]:
    def picture(number: int) -> Picture:
        data = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)).save(data, "PNG")
        return Picture(data=data.getvalue(), uri=f"{name}{number}", key=f"{name}{number}")

    return [
        Dialogue(
            dialogue_id=f"{name}-{number}",
            source="test",
            theme="people",
            style=None,
            initial_prompt=subject,
            intent=f"{subject}, dark skin",
            turns=(
                Turn(round=1, feedback="", refined_prompt=subject, operation="initial"),
                Turn(
                    round=2,
                    feedback="make the skin dark",
                    refined_prompt=f"{subject}, dark skin",
                    operation="skin_tone",
                    target=picture(number),
                ),
            ),
        )
        for number, subject in enumerate(subjects)
    ]


VALIDATION = dialogues("validation", ["pilot", "farmer", "judge", "singer"])
TEST = dialogues("test", ["cook", "astronaut", "student", "teacher", "scientist", "artist", "guard"])


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def evaluation(tiny: StableDiffusion, judge: Judge, *, lora: float, **changes: object) -> Evaluation:
    config = CONFIG.model_copy(update=changes)
    tiny.attach_lora(rank=2, alpha=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tiny.lora().values():
            parameter.copy_(lora * torch.randn_like(parameter))
    painter = Painter(pipeline=tiny, steps=3, guidance=1.0, eta=0.0, batch=config.batch, seed=config.seed)
    panel = Panel(content=judge, shipped=judge, reward=Brightness())  # type: ignore[arg-type]
    return Evaluation(config=config, painter=painter, panel=panel, progress=Quiet())


def test_a_policy_that_equals_the_base_shows_no_difference_at_all(
    tiny: StableDiffusion, judge: Judge, tmp_path: Path
) -> None:
    found = evaluation(tiny, judge, lora=0.0).measure(validation=VALIDATION, test=TEST, output=tmp_path)
    assert all(figure["delta"] == {"value": 0, "low": 0, "high": 0} for figure in found["policy"].values())
    assert found["scale"]["chosen"] == 0
    assert all(rates["win"] == rates["lose"] == 0 for rates in found["win_rates"])
    ours, base = (found["dialogues"][0][name]["rounds"] for name in ("trained", "base"))
    assert [r["content"] for r in ours] == [r["content"] for r in base]


def test_few_validation_prompts_are_drawn_again_with_other_noise(
    tiny: StableDiffusion, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = Evaluation.look, []

    def look(self: Evaluation, prompts: list[str], *, name: str, **rest: Any) -> Any:
        found = real(self, prompts, name=name, **rest)
        if name == "validation":
            looks.append((prompts, found[1]))
        return found

    monkeypatch.setattr(Evaluation, "look", look)
    evaluation(tiny, judge, lora=0.0).measure(validation=VALIDATION, test=TEST, output=tmp_path)
    prompts, images_BCHW = looks[0]
    assert (len(prompts), len(set(prompts))) == (10, 8)
    assert prompts[8:] == prompts[:2]
    assert not torch.equal(images_BCHW[8], images_BCHW[0])


def test_a_changed_policy_is_measured_and_shown(tiny: StableDiffusion, judge: Judge, tmp_path: Path) -> None:
    # A scale above 0 is forced by a taste that the base never meets less often than the changed policy.
    found = evaluation(tiny, judge, lora=1.0).measure(validation=VALIDATION, test=TEST, output=tmp_path)
    assert [c["scale"] for c in found["scale"]["candidates"]] == [0, 0.5, 1.0]
    contents = [c["content_judge"] for c in found["scale"]["candidates"]]
    assert len(set(contents)) == 3
    assert set(found["policy"]) >= {
        "preference_score",
        "taste_share",
        "content_judge",
        "content_judge_equal_style",
        "rounds_to_satisfaction",
        "lpips_style",
        "recall_at_1",
    }
    assert found["counts"]["prompts"] == 12
    assert found["counts"]["dialogues"] == 5
    assert set(found["selection"]) == {"4", "6"}
    assert len(found["dialogues"]) == 2
    for shown in found["dialogues"]:
        pictures = [shown["target"], *(r["picture"] for name in ("base", "trained") for r in shown[name]["rounds"])]
        assert all(Image.open(tmp_path / path).size == (16, 16) for path in pictures)
    for name in ("base", "trained"):
        told = found["sessions"][name]
        assert told["satisfied"] + told["censored"] == pytest.approx(1)
        assert sum(told["rounds"].values()) == round(told["satisfied"] * 5)
    json.dumps(found)


def test_scale_and_threshold_never_see_test_data(tiny: StableDiffusion, judge: Judge, tmp_path: Path) -> None:
    measured = evaluation(tiny, judge, lora=1.0)
    other = [dataclasses.replace(d, intent="banana", initial_prompt="banana") for d in TEST[:3]]
    first = measured.measure(validation=VALIDATION, test=TEST, output=tmp_path)
    second = measured.measure(validation=VALIDATION, test=other, output=tmp_path)
    assert first["scale"] == second["scale"]
    assert first["threshold"] == second["threshold"]
    assert first["policy"] != second["policy"]


def test_prompts_are_asked_without_the_words_that_name_a_style(tiny: StableDiffusion, judge: Judge) -> None:
    turns = tuple(
        Turn(round=n, feedback="", refined_prompt=prompt, operation="initial")
        for n, prompt in enumerate(["cook", "cook, fluent style", "cook, bald, noto style"], 1)
    )
    named = [dataclasses.replace(TEST[0], turns=turns)]
    assert sorted(evaluation(tiny, judge, lora=0.0).prompts(named, 10)) == ["cook", "cook, bald"]
    assert len(evaluation(tiny, judge, lora=0.0, taste=None).prompts(named, 10)) == 3


def test_the_threshold_is_a_percentile_of_what_the_base_draws(tiny: StableDiffusion, judge: Judge) -> None:
    low, high = (
        evaluation(tiny, judge, lora=lora, satisfied_percentile=percentile).threshold(VALIDATION)
        for lora, percentile in ((0.0, 0), (1.0, 100))
    )
    assert low < high
    assert (
        evaluation(tiny, judge, lora=0.5, satisfied_percentile=100).threshold(VALIDATION) == high
    )  # not of the policy
