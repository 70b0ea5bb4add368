"""The stages of the loop, and what each result depends on.

Everything that runs a stage (a command, a pipeline step, a test) comes through `run`, so that all agree on when a
result may be used again: same settings, same code, same inputs, by content.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vca import store
from vca.models import location
from vca.progress import Progress
from vca.settings import Settings

PACKAGE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: where its `run` lies, what it reads, how its output folder is called.

    models: those of its settings that name base models; a model that an input was made with counts with the input.
    resumable: an interrupted attempt may go on from what it left (the stage itself checks what it finds).
    """

    module: str
    section: str
    inputs: tuple[str, ...]
    output: str
    models: tuple[str, ...] = ()
    resumable: bool = False


STAGES = {
    "data": Stage(module="vca.data.prepare", section="data", inputs=(), output="data"),
    "reward": Stage(module="vca.reward.train", section="reward", inputs=("data",), output="reward", models=("base",)),
    "diffusion": Stage(
        module="vca.diffusion.train",
        section="diffusion",
        inputs=("data", "reward"),
        output="policy",
        models=("base",),
        resumable=True,
    ),
    "evaluation": Stage(
        module="vca.evaluation.evaluate",
        section="evaluation",
        inputs=("data", "reward", "policy"),
        output="evaluation",
        models=("base", "content_judge"),
    ),
    "report": Stage(
        module="vca.evaluation.report",
        section="evaluation",
        inputs=("data", "reward", "policy", "evaluation"),
        output="report",
    ),
}


def config_of(settings: Settings, name: str) -> BaseModel:
    """The part of the settings that stage `name` takes."""
    section: BaseModel = getattr(settings, STAGES[name].section)
    return section


def parse_config(name: str, text: str) -> BaseModel:
    """What `config_of(...).model_dump_json()` wrote, checked again."""
    kind: Any = Settings.model_fields[STAGES[name].section].annotation
    config: BaseModel = kind.model_validate_json(text)
    return config


def run(
    name: str,
    *,
    config: BaseModel,
    code_version: str,
    inputs: Mapping[str, Path],
    output: Path,
    progress: Progress,
    watermark: str = "",
    store_root: Path | None = None,
) -> store.Result:
    """Run stage `name` into `output`, or find the result of the same settings, code and inputs.

    code_version: what `code_version` says, or the digest of the image that runs this. watermark: identifies the source
    data of data preparation. store_root: results are kept below it, one folder per key, and `output` becomes a copy of
    one (hard links where possible); without it `output` alone is the result. Errors: as the stage raises them.
    """
    stage = STAGES[name]
    parts = {
        "stage": name,
        "settings": config.model_dump(mode="json"),
        "code_version": code_version,
        "models": model_digests(name, config),
        "watermark": watermark,
        "inputs": {key: store.input_digest(inputs[key], name=key) for key in stage.inputs},
    }

    def make(folder: Path) -> dict[str, Any]:
        module = importlib.import_module(stage.module)
        result = module.run(config, inputs=dict(inputs), output=folder, progress=progress)
        return dict(result.metrics)

    folder = store_root / name / store.key_of(parts)[:20] if store_root else output
    result = store.produce(folder, stage=name, parts=parts, make=make, progress=progress, resumable=stage.resumable)
    if folder != output:
        store.place(folder, output)
    return result


def code_version(name: str) -> str:
    """The sha256 of what decides how stage `name` computes: the sources it imports and the versions of the libraries.

    Sources are hashed without comments and layout, so that a reworded comment doesn't train again. Files of other kinds
    beside a source (templates, tables) count with it.
    """
    total = hashlib.sha256()
    files = sources(STAGES[name].module)
    for path in sorted(files):
        total.update(f"{path.relative_to(PACKAGE)}\n{ast.dump(ast.parse(path.read_text(encoding='utf-8')))}\n".encode())
    for path in sorted(other for folder in {file.parent for file in files} for other in folder.iterdir()):
        if path.is_file() and path.suffix not in (".py", ".md"):
            total.update(f"{path.relative_to(PACKAGE)}\n{store.digest(path)}\n".encode())
    for library, version in _library_versions():
        total.update(f"{library}=={version}\n".encode())
    return total.hexdigest()


def model_digests(name: str, config: BaseModel) -> dict[str, str]:
    """Which base models stage `name` loads, by content. Raises ArtifactError for one that isn't there."""
    return {field: location.digest(getattr(config, field)) for field in STAGES[name].models}


def sources(module: str) -> set[Path]:
    """The files of this package that importing and running `module` can reach.

    Follows every import statement, also inside functions, and module names in strings (`python -m …`).
    """
    if _file(module) is None:
        raise ImportError(f"no module {module}")
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or path in found:
            continue
        found.add(path)
        waiting += _mentioned(name, path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return found


_MODULE_NAME = re.compile(r"vca(\.\w+)+")


def _mentioned(name: str, path: Path) -> list[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_NAME.fullmatch(node.value):
            names.append(node.value)
    return names


def _file(module: str) -> Path | None:
    first, _, rest = module.partition(".")
    if first != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*rest.split(".")) if rest else PACKAGE
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _library_versions() -> list[tuple[str, str]]:
    versions = [("python", platform.python_version())]
    for requirement in importlib.metadata.requires("vca") or []:
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and (extra is None or extra.group(1) == "train"):
            try:
                versions.append((name.group(), importlib.metadata.version(name.group())))
            except importlib.metadata.PackageNotFoundError:
                versions.append((name.group(), "missing"))
    return sorted(versions)
