"""Every setting of a run: the rooms' own settings put together, filled from a preset, a file and `--set` overrides.

A preset says only what differs from the defaults that the rooms' classes declare. Refusals are one line: the key,
what was given, what is allowed.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from vca.data.settings import DataSettings
from vca.diffusion.settings import DiffusionSettings
from vca.errors import SettingsError
from vca.evaluation.settings import EvaluationSettings
from vca.feedback.settings import FeedbackSettings
from vca.refine.settings import RefineSettings
from vca.reward.settings import RewardSettings
from vca.service import ServingSettings, StudioSettings

PRESETS = {
    "local": "small models, real data, minutes on a laptop's CPU",
    "recommended": "what a serious user should run: fewer steps, a better reward head, guards on",
    "paper": "the paper's figures to the letter",
}


class Settings(BaseModel):
    """All settings of one run. `seed` reaches every stage that doesn't set its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="seed of every stage that sets none of its own", ge=0, lt=2**31)
    data: DataSettings = Field(default_factory=DataSettings, description="data preparation")
    refine: RefineSettings = Field(default_factory=RefineSettings, description="prompt refinement")
    reward: RewardSettings = Field(default_factory=RewardSettings, description="reward training")
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings, description="diffusion training")
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings, description="evaluation and report")
    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings, description="what people say, and its store")
    serving: ServingSettings = Field(default_factory=ServingSettings, description="model servers")
    studio: StudioSettings = Field(default_factory=StudioSettings, description="where people refine pictures")

    @model_validator(mode="after")
    def _rooms_agree(self) -> Self:
        if self.evaluation.base != self.diffusion.base:
            raise ValueError(
                f"evaluation.base {self.evaluation.base!r} is not diffusion.base {self.diffusion.base!r}; "
                "set both to the model that is trained"
            )
        return self


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: `1e-4` is a number, as everybody expects, not a string as in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"),
    list("-+0123456789."),
)


def load(*, preset: str = "local", file: Path | None = None, overrides: Iterable[str] = ()) -> Settings:
    """The settings of `preset`, changed by the YAML in `file`, changed by `overrides` ("diffusion.learning_rate=1e-4").

    Raises SettingsError for an unknown preset or key, a wrong type, a value out of bounds, an impossible combination.
    """
    tree = _preset(preset)
    if file is not None:
        tree = _merge(tree, _read(file))
    for override in overrides:
        tree = _merge(tree, _override(override))
    return _validate(tree)


def parse(text: str) -> Settings:
    """The settings that `Settings.model_dump_json` wrote."""
    return _validate(json.loads(text))


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise SettingsError(f"unknown preset {name!r}{_meant(name, PRESETS)}; allowed: {', '.join(PRESETS)}")
    return _mapping(files("vca").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {file} cannot be read ({error}); give a YAML file") from error
    return _mapping(text, f"settings file {file}")


def _mapping(text: str, where: str) -> dict[str, Any]:
    tree = _yaml(text, where)
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise SettingsError(f"{where}: expected `section: {{key: value}}`, got {type(tree).__name__}")
    return tree


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {text!r}: expected key=value, as in --set diffusion.learning_rate=1e-4")
    tree: Any = _yaml(value, f"--set {text!r}")
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return dict(tree)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def overrides_of(file: Path | None) -> list[str]:
    """The settings in `file` as overrides, one per key, as `load` and the pipeline take them."""

    def walk(tree: Mapping[str, Any], path: str) -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{path}{key}.")
            else:
                yield f"{path}{key}={json.dumps(value, default=str)}"

    return list(walk(_read(file), "")) if file is not None else []


def arithmetic(settings: Settings) -> list[str]:
    """How the batches of this run come together, one line for each training stage."""
    return [
        f"reward: {settings.reward.arithmetic(world=1)}",
        f"diffusion: {settings.diffusion.arithmetic(world=settings.diffusion.processes)}",
    ]


def _validate(tree: dict[str, Any]) -> Settings:
    seed = tree.get("seed")
    for name, info in Settings.model_fields.items():
        for model in _models(info.annotation):
            section = {} if tree.get(name) is None else tree[name]
            if isinstance(section, dict) and "seed" in model.model_fields and type(seed) is int and seed >= 0:
                section = {"seed": seed, **section}
            tree = {**tree, name: section}
    try:
        # As strict JSON: "8" is no integer and true is no number, while lists become tuples and text becomes a path.
        return Settings.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # A misspelt key also makes the right one missing: the misspelling is the cause.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    location = tuple(str(part) for part in first["loc"])
    key, parent = ".".join(location), ".".join(location[:-1])
    others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = [name for model in _at(location[:-1]) for name in model.model_fields]
        keys = f"keys of {parent}" if parent else "top-level keys"
        return f"unknown key {key}{_meant(location[-1], known, parent)}; {keys}: {', '.join(known)}{others}"
    if first["type"] == "value_error":  # a validator of the room: a combination that cannot run
        return f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{others}"
    field = next((model.model_fields.get(location[-1]) for model in _at(location[:-1])), None)
    allowed = f"; allowed: {describe(field)}" if field is not None else ""
    given = "nothing" if first["type"] == "missing" else repr(first["input"])
    return f"{key}: got {given}, {first['msg'].replace('Input should', 'should').lower()}{allowed}{others}"


def _meant(word: str, known: Iterable[str], parent: str = "") -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=2)
    close += [name for name in known if word == "".join(part[:1] for part in name.split("_"))]  # lr: learning_rate
    return f" (did you mean {' or '.join('.'.join(filter(None, (parent, name))) for name in close)}?)" if close else ""


def _at(location: Iterable[str]) -> list[type[BaseModel]]:
    """The settings classes that may stand at `location`; list positions and union tags in it name no field."""
    models: list[type[BaseModel]] = [Settings]
    for part in location:
        below = [
            m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)
        ]
        tagged = [m for m in models if part in get_args(getattr(m.model_fields.get("kind"), "annotation", None))]
        models = below or tagged or models
    return models


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def describe(info: FieldInfo) -> str:
    """A field's type, bounds and meaning in words."""
    kind = info.annotation
    name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    if get_origin(kind) is Literal:
        name = ", ".join(repr(value) for value in get_args(kind))
    elif _models(kind):
        name = "a list or mapping of settings"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [f"{sign} {getattr(m, a)}" for m in info.metadata for a, sign in signs.items() if hasattr(m, a)]
    meaning = f" ({info.description})" if info.description else ""
    return " ".join(filter(None, (name, " and ".join(bounds)))) + meaning
