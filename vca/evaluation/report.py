"""The report stage: `report.json` with every figure of a run, and `report.html` for people, one file, no requests."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vca.data.manifest import Kind, Manifest, read_manifest
from vca.errors import ArtifactError
from vca.evaluation.charts import curve
from vca.evaluation.settings import EvaluationSettings
from vca.evaluation.words import KINDS, POLICY_FIGURES, headline, sentences
from vca.progress import Progress
from vca.records import Role, StageResult
from vca.store import read_record, write_json

INPUTS = ("data", "reward", "policy", "evaluation")
JSON, HTML = "report.json", "report.html"


def run(config: EvaluationSettings, *, inputs: dict[str, Path], output: Path, progress: Progress) -> StageResult:
    """inputs: the folders of the four stages, each with its stage.json. Errors: ArtifactError."""
    records = {name: _record(inputs[name], name) for name in INPUTS}
    evaluation = _json(inputs["evaluation"] / "evaluation.json")
    reward = _json(inputs["reward"] / "metrics.json")
    manifest = read_manifest(inputs["data"], verify=False)
    figures = {
        "seconds": {record["stage"]: record["seconds"] for record in records.values()},
        "peak_rss_mb": max(record["peak_rss_mb"] for record in records.values()),
        "data": _data(manifest),
        "reward": {name: reward[name] for name in ("accuracy", "accuracy_base", "pairs", "calibration")},
        "policy": {**evaluation["policy"], "scale": evaluation["scale"]["chosen"]},
        "evaluation": {name: part for name, part in evaluation.items() if name not in ("policy", "dialogues")},
        "settings": {record["stage"]: record["made_from"]["settings"] for record in records.values()},
        "results": {record["stage"]: record["digest"] for record in records.values()},
    }
    text = render(
        figures,
        dialogues=evaluation["dialogues"],
        pictures=inputs["evaluation"],
        curves=[*_reward_curves(reward["curves"]), *_policy_curves(inputs["policy"] / "metrics.jsonl")],
        peaks={record["stage"]: record["peak_rss_mb"] for record in records.values()},
        taste=config.taste,
    )
    _write(output / HTML, text)
    write_json(output / JSON, figures)
    progress.say(headline(figures, taste=config.taste))
    return StageResult(output=output, metrics={"policy": figures["policy"]})


def render(
    figures: Mapping[str, Any],
    *,
    dialogues: Iterable[Mapping[str, Any]],
    pictures: Path,
    curves: list[tuple[str, str]],
    peaks: Mapping[str, float],
    taste: str | None,
) -> str:
    """The page. pictures: the folder that the dialogues' picture paths are relative to."""
    import jinja2

    def picture(path: str) -> str:
        return f"data:image/png;base64,{base64.b64encode((pictures / path).read_bytes()).decode()}"

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"figure": _figure, "signed": _signed, "count": "{:,}".format, "flat": _flat, "span": _span}
    environment.globals |= {"picture": picture, "kinds": KINDS, "policy_figures": POLICY_FIGURES, "float": float}
    template = environment.from_string(
        files("vca.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        **figures,
        headline=headline(figures, taste=taste),
        sentences=sentences(figures, taste=taste),
        dialogues=list(dialogues),
        curves=curves,
        peaks=peaks,
        taste=taste,
    )


def _record(folder: Path, name: str) -> dict[str, Any]:
    record = read_record(folder)
    if record is None:
        raise ArtifactError(f"{name}: {folder} is no finished stage (no stage.json); run that stage first")
    return record


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} can't be read ({error}); run the stage that writes it again") from error


def _data(manifest: Manifest) -> dict[str, Any]:
    roles: tuple[Role, ...] = ("reward", "diffusion", "validation", "test")
    places: tuple[Kind, ...] = ("pairs", "dialogues")
    kinds: dict[str, int] = {}
    for source in manifest.sources.values():
        for name, number in source.written_kinds.items():
            kind = name.partition("/")[2]
            kinds[kind] = kinds.get(kind, 0) + number
    return {
        "watermark": manifest.watermark,
        "rows": {kind: {role: manifest.rows(kind=kind, role=role) for role in roles} for kind in places},
        "kinds": dict(sorted(kinds.items())),
        "sources": {
            name: {
                "seen": counts.seen,
                "used": sum(counts.accepted.values()),
                "people": counts.people,
                "pairs": sum(number for key, number in counts.accepted.items() if key.startswith("pairs/")),
                "filtered": sum(counts.filtered.values()),
                "straddling": counts.straddles,
                "quarantined": sum(counts.quarantined.values()),
            }
            for name, counts in manifest.sources.items()
        },
    }


def _reward_curves(steps: list[dict[str, float]]) -> list[tuple[str, str]]:
    if not steps:
        return []
    told = (
        ("loss", "Reward model: loss", "falls as it learns what people prefer", 0.6931),
        ("accuracy", "Reward model: accuracy on the batch", "share of pairs judged as people did", 0.5),
    )
    return [
        (title, curve([s[key] for s in steps], name=title, description=words, unit="step", level=level))
        for key, title, words, level in told
    ]


def _policy_curves(path: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    told = (
        ("reward_mi_mean", "Policy: reward of its pictures", "calibrated score of the reward model", None),
        (
            "saturation_mean",
            "Policy: colour of its pictures",
            "a sudden rise or fall shows a reward that is cheated",
            None,
        ),
        ("lora_norm", "Policy: distance from the base", "norm of the trained LoRA weights", None),
    )
    return [
        (title, curve([s[key] for s in lines], name=title, description=words, unit="rollout", level=level))
        for key, title, words, level in told
    ]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _figure(value: float, style: str) -> str:
    """A number as people read it: a share in percent, a score with three digits, rounds with one."""
    text = {"share": f"{100 * value:.0f}\u00a0%", "score": f"{value:.3f}", "rounds": f"{value:.1f}"}[style]
    return text.replace("-", "−")


def _signed(value: float, style: str, unit: bool = True) -> str:
    """The same for a difference, with its sign; shares in percentage points."""
    text = {"share": f"{100 * value:+.0f}", "score": f"{value:+.3f}", "rounds": f"{value:+.1f}"}[style]
    return text.replace("-", "−") + ("\u00a0points" if unit and style == "share" else "")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _flat(tree: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        rows += (
            _flat(value, f"{before}{key}.")
            if isinstance(value, Mapping) and value
            else [(f"{before}{key}", json.dumps(value))]
        )
    return rows
