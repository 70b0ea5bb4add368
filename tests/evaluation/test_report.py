"""A report from four stage folders, whose figures are made up here and written as the stages write them."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vca.data.manifest import FILE_NAME, Manifest, Shard, SourceCounts, digest_of
from vca.errors import ArtifactError
from vca.evaluation import report
from vca.evaluation.settings import EvaluationSettings
from vca.evaluation.statistics import Compared, compare
from vca.evaluation.words import headline, sentences
from vca.evaluation.words import people as people_of
from vca.progress import Quiet
from vca.reward.accuracy import wilson
from vca.store import produce, write_json

CONFIG = EvaluationSettings(taste="fluent", seed=5)
VOID = {"meta", "img", "br", "path", "use", "rect", "link", "input"}


def compared(before: float, after: float, spread: float = 0.05) -> Compared:
    rng = np.random.default_rng(0)
    base = rng.normal(before, 0.1, 100)
    return compare(base_N=base, trained_N=base + rng.normal(after - before, spread, 100), seed=0, resamples=200)


def policy(*, taste: tuple[float, float] = (0.3, 0.6)) -> dict[str, Compared]:
    return {
        "preference_score": compared(0.1, 0.5),
        "taste_share": compared(*taste),
        "content_judge": compared(0.48, 0.47),
        "content_judge_equal_style": compared(0.48, 0.475),
        "recall_at_1": compared(0.3, 0.3),
        "rounds_to_satisfaction": compared(8.0, 7.0),
        "lpips_style": compared(0.4, 0.4),
    }


def session(folder: Path, name: str, rounds: int) -> dict[str, Any]:
    shown = []
    for number in range(1, rounds + 1):
        path = f"pictures/{name}-{number:02d}.png"
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(folder / path)
        said = "" if number == 1 else f"make it <b>{name}</b> & {number}"
        shown.append({"feedback": said, "prompt": "cook", "content": 0.4, "style": "noto", "picture": path})
    return {"satisfied": rounds < 12, "rounds": shown}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    rates = {"win": 0.5, "tie": 0.3, "lose": 0.2}

    def data(folder: Path) -> dict[str, Any]:
        shards = (
            Shard(
                file="pairs-train-reward-00000.parquet",
                kind="pairs",
                split="train",
                role="reward",
                rows=900,
                bytes=10,
                sha256="a" * 64,
            ),
        )
        counts = SourceCounts(
            seen=1000,
            accepted={"pairs/train/reward": 950},
            filtered={"style_words": 50},
            written_kinds={"reward/hair": 900},
        )
        manifest = Manifest(
            watermark="emoji@1",
            digest=digest_of(shards),
            total=900,
            shards=shards,
            sources={"emoji": counts},
            settings={},
        )
        (folder / FILE_NAME).write_text(manifest.model_dump_json())
        return {}

    def reward(folder: Path) -> dict[str, Any]:
        accuracy = {kind: wilson(successes=80, n=100) for kind in ("overall", "edited", "hair", "taste")}
        base = {kind: wilson(successes=55, n=100) for kind in accuracy}
        curves = [{"loss": 0.7 - n / 50, "accuracy": 0.5 + n / 50} for n in range(12)]
        pairs = {"reward": 900, "validation": 100, "test": 100}
        calibration = {"mu": 0.0, "s": 1.0, "n": 200}
        metrics = {
            "accuracy": accuracy,
            "accuracy_base": base,
            "curves": curves,
            "pairs": pairs,
            "calibration": calibration,
        }
        write_json(folder / "metrics.json", metrics)
        return {}

    def diffusion(folder: Path) -> dict[str, Any]:
        lines = [{"reward_mi_mean": n / 10, "saturation_mean": 0.3, "lora_norm": float(n)} for n in range(8)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return {}

    def evaluation(folder: Path) -> dict[str, Any]:
        (folder / "pictures").mkdir()
        Image.new("RGB", (8, 8), "green").save(folder / "pictures" / "target.png")
        found = {
            "policy": policy(),
            "scale": {
                "chosen": 0.5,
                "tolerance": 0.03,
                "candidates": [
                    {"scale": s, "gain": s, "content_judge": 0.5, "preference_score": s, "allowed": s < 1}
                    for s in (0.0, 0.5, 1.0)
                ],
            },
            "threshold": 0.4,
            "counts": {
                "prompts": 100,
                "dialogues": 50,
                "styles": {name: {"noto": 0.5, "twemoji": 0.2, "fluent": 0.3} for name in ("base", "trained")},
            },
            "sessions": {
                name: {"satisfied": 0.9, "censored": 0.1, "rounds": {"1": 45}} for name in ("base", "trained")
            },
            "win_rates": [rates] * 8,
            "selection": {"9": {"random": rates, "best": rates}},
            "dialogues": [
                {
                    "dialogue_id": "d1",
                    "intent": "cook, bald",
                    "wanted_style": "fluent",
                    "style_named": False,
                    "target": "pictures/target.png",
                    "base": session(folder, "base", 12),
                    "trained": session(folder, "trained", 3),
                }
            ],
        }
        write_json(folder / "evaluation.json", found)
        return {}

    stages: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
        "data": ("data", data),
        "reward": ("reward", reward),
        "policy": ("diffusion", diffusion),
        "evaluation": ("evaluation", evaluation),
    }
    for name, (stage, make) in stages.items():
        parts = {"settings": CONFIG.model_dump(mode="json")}
        produce(tmp_path / name, stage=stage, parts=parts, make=make, progress=Quiet())
    (tmp_path / "report").mkdir()
    return {name: tmp_path / name for name in stages}


@pytest.fixture
def written(inputs: dict[str, Path], tmp_path: Path) -> Path:
    report.run(CONFIG, inputs=inputs, output=tmp_path / "report", progress=Quiet())
    return tmp_path / "report"


def test_json_holds_every_figure_under_its_name(written: Path) -> None:
    found = json.loads((written / report.JSON).read_text())
    assert set(found["seconds"]) == {"data", "reward", "diffusion", "evaluation"}
    assert all(isinstance(seconds, float) for seconds in found["seconds"].values())
    assert found["peak_rss_mb"] > 50  # this process, at least
    for name in ("overall", "edited", "hair", "taste"):
        assert set(found["reward"]["accuracy"][name]) == {"value", "low", "high", "n"}
    for name in ("preference_score", "taste_share", "content_judge", "rounds_to_satisfaction", "lpips_style"):
        for part in ("base", "trained", "delta"):
            interval = found["policy"][name][part]
            assert interval["low"] <= interval["value"] <= interval["high"]
    assert found["settings"]["evaluation"]["seed"] == 5


class Page(HTMLParser):
    """Collects pictures and addresses, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(values)
        self.addresses += [str(values[key]) for key in ("src", "href", "xlink:href", "action", "data") if key in values]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_parses_and_asks_nothing_of_the_network(written: Path) -> None:
    html = (written / report.HTML).read_text()
    page = Page(html)
    assert page.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"https?:|@import|<script|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html


def test_every_picture_is_shown_with_words_for_those_who_do_not_see(written: Path) -> None:
    page = Page((written / report.HTML).read_text())
    # The target, three trained rounds, and of twelve base rounds the first seven and the last.
    assert len(page.pictures) == 1 + 3 + 8
    assert "4 more rounds" in page.text
    assert all(picture["alt"] for picture in page.pictures)
    assert (
        len({picture["src"] for picture in page.pictures}) == 1 + 8
    )  # both sessions share three of the test's pictures


def test_what_people_said_is_shown_as_text(written: Path) -> None:
    html = (written / report.HTML).read_text()
    assert "<b>base</b>" not in html
    assert "make it <b>base</b> & 2" in Page(html).text


def test_curves_take_the_pages_colours(written: Path) -> None:
    html = (written / report.HTML).read_text()
    assert html.count("<svg") == 5
    assert "var(--trained)" in html[html.index("<svg") :]
    assert "#010206" not in html


def test_a_folder_without_its_record_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    (inputs["policy"] / "stage.json").unlink()
    with pytest.raises(ArtifactError, match="policy"):
        report.run(CONFIG, inputs=inputs, output=tmp_path / "report", progress=Quiet())


@pytest.mark.parametrize(
    ("taste", "start"),
    [((0.3, 0.6), "The model learned"), ((0.6, 0.3), "The model moved away"), ((0.3, 0.3), "The reward model, which")],
)
def test_the_headline_says_what_the_intervals_allow(taste: tuple[float, float], start: str) -> None:
    assert headline({"policy": policy(taste=taste)}, taste="fluent").startswith(start)


def test_nothing_is_claimed_of_an_interval_with_zero() -> None:
    same = {name: compared(0.4, 0.4, spread=0.5) for name in policy()}
    accuracy = {"overall": wilson(successes=80, n=100)}
    figures = {"policy": same, "reward": {"accuracy": accuracy, "accuracy_base": accuracy}, "data": {"sources": {}}}
    assert headline(figures, taste="fluent").startswith("In this run no difference")
    said = " ".join(sentences(figures, taste="fluent"))
    assert "no clear difference" in said
    assert "no clear change" in said


def test_people_are_named_where_people_were_asked() -> None:
    def told(*sources: tuple[int, int]) -> list[str]:
        named = {str(n): {"people": people, "pairs": pairs} for n, (people, pairs) in enumerate(sources)}
        return people_of({"data": {"sources": named}})

    assert told((0, 500)) == []
    assert "1 pair of pictures that 1 person compared" in told((1, 1))[0]
    assert "1,203 pairs of pictures that 12 people compared" in told((0, 500), (5, 3), (7, 1200))[0]
