"""The rules of the house that a reader relies on: what may import what, who prints, how long a file gets."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up.
FLOORS = ("records", "models", "safety", "data", "provenance", "refine", "reward", "diffusion", "evaluation")
ABOVE = {"components", "pipelines", "serving", "kfp", "kfp_kubernetes", "kserve", "kubernetes"}
HEAVY = {
    *("torch", "transformers", "diffusers", "peft", "bitsandbytes", "deepspeed", "matplotlib", "accelerate"),
    *("onnxruntime", "c2pa"),
}
LIBRARY = sorted((ROOT / "vca").rglob("*.py"))
PYTHON = sorted(
    path
    for room in ("vca", "components", "pipelines", "serving", "tests", "benchmarks", "scripts")
    for path in (ROOT / room).rglob("*.py")
)


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(module: str) -> str:
    """The floor of a module of the library; what lies directly in vca/ and isn't the ground floor has none."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in FLOORS else "records" if part in ("errors", "progress", "checkpoint") else ""


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_the_library_knows_no_platform_and_imports_point_down(path: Path) -> None:
    names = imported(path)
    assert {module.split(".")[0] for module in names} & ABOVE == set()
    here = room(name(path))
    if here:
        above = {m for m in names if room(m) and FLOORS.index(room(m)) > FLOORS.index(here)}
        assert above == set()


def test_only_the_door_and_the_bars_print() -> None:
    printing = {
        name(path)
        for path in [*LIBRARY, *(ROOT / "components").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"vca.cli", "vca.cli_feedback", "vca.progress", "pipelines.local"}


def test_files_stay_short() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert {path: lines for path, lines in lengths.items() if lines > 450} == {}


def test_settings_and_the_command_line_import_nothing_heavy() -> None:
    light = [name(path) for path in LIBRARY if path.name in ("settings.py", "records.py", "cli.py")]
    script = f"import importlib, sys; [importlib.import_module(m) for m in {light!r}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {module.split(".")[0] for module in loaded} & HEAVY == set()


def test_package_files_say_nothing_but_what_the_package_is() -> None:
    for path in (ROOT / "vca").rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        code = [node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
        assert all(isinstance(node, ast.Assign) for node in code), path  # __version__


def test_components_are_thin() -> None:
    for path in (ROOT / "components").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert body[-1].end_lineno - body[0].lineno < 15, path  # type: ignore[operator]
