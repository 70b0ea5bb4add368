"""What a result depends on: nothing less, or a stale result is served; nothing more, or work is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vca import stages, store
from vca.errors import ArtifactError
from vca.progress import Quiet
from vca.settings import load

TINY = (
    "data.sources=[{kind: emoji, train_pairs: 40, validation_pairs: 10, test_pairs: 20, train_dialogues: 4, "
    "validation_dialogues: 2, test_dialogues: 2}]"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in place of this one: entry.py reaches helper.py, late.py and told.py, but not other.py."""
    folder = tmp_path / "vca"
    (folder / "room").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "room/__init__.py": "",
        "room/entry.py": 'from vca import helper\nfrom .near import x\ndef f():\n import vca.late\n f("vca.told")\n',
        "room/near.py": "x = 1\n",
        "helper.py": "def half(x):\n    return x / 2\n",
        "late.py": "",
        "told.py": "",
        "other.py": "",
        "room/table.json": "{}",
        "room/README.md": "words",
    }.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(stages, "PACKAGE", folder)
    monkeypatch.setitem(
        stages.STAGES, "entry", stages.Stage(module="vca.room.entry", section="data", inputs=(), output="")
    )
    return folder


def test_sources_are_what_a_module_can_reach(package: Path) -> None:
    reached = {path.relative_to(package).as_posix() for path in stages.sources("vca.room.entry")}
    assert reached == {
        "__init__.py",
        "room/__init__.py",
        "room/entry.py",
        "room/near.py",
        "helper.py",
        "late.py",
        "told.py",
    }
    with pytest.raises(ImportError):
        stages.sources("vca.room.nothing")


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("helper.py", "def half(x):\n    return x / 3\n", True),
        ("late.py", "y = 1\n", True),
        ("told.py", "y = 1\n", True),
        ("room/near.py", "x = 2\n", True),
        ("room/table.json", "[]", True),
        ("helper.py", "# why\ndef half(x):\n\n    return (x / 2)\n", False),
        ("other.py", "y = 1\n", False),
        ("room/README.md", "other words", False),
    ],
)
def test_the_code_version_changes_with_what_can_change_the_result(
    package: Path, file: str, text: str, changes: bool
) -> None:
    before = stages.code_version("entry")
    (package / file).write_text(text)
    assert (stages.code_version("entry") != before) is changes


def test_the_code_version_changes_with_a_library(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stages.code_version("entry")
    monkeypatch.setattr(stages.importlib.metadata, "version", lambda name: "99")
    assert stages.code_version("entry") != before


def test_a_stage_depends_on_its_floor_and_those_below_only() -> None:
    def rooms(name: str) -> set[str]:
        return {path.relative_to(stages.PACKAGE).parts[0] for path in stages.sources(stages.STAGES[name].module)}

    assert not rooms("data") & {"reward", "diffusion", "evaluation"}
    assert not rooms("reward") & {"diffusion", "evaluation"}
    assert {"reward", "data", "diffusion"} <= rooms("diffusion")
    assert "evaluation" not in rooms("diffusion")


def test_what_data_preparation_loads_is_among_its_sources(tmp_path: Path) -> None:
    script = f"""
import json, sys
from pathlib import Path
from vca.data.prepare import run
from vca.progress import Quiet
from vca.settings import load
before = set(sys.modules)
run(load(overrides=[{TINY!r}]).data, inputs={{}}, output=Path({str(tmp_path / "data")!r}), progress=Quiet())
loaded = [m.__file__ for n, m in sys.modules.items() if n.startswith("vca.") and n not in before]
print(json.dumps([f for f in loaded if f]))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {Path(file) for file in json.loads(run.stdout.splitlines()[-1])}
    assert loaded <= stages.sources("vca.data.prepare")


def data_stage(root: Path, output: Path, *overrides: str, code: str = "c1", watermark: str = "w1") -> store.Result:
    settings = load(overrides=[TINY, *overrides])
    return stages.run(
        "data",
        config=settings.data,
        code_version=code,
        watermark=watermark,
        inputs={},
        output=output,
        store_root=root,
        progress=Quiet(),
    )


def test_data_runs_again_for_other_settings_code_or_sources_and_else_not(tmp_path: Path) -> None:
    root = tmp_path / "store"
    first = data_stage(root, tmp_path / "1")
    again = data_stage(root, tmp_path / "2")
    assert (first.cached, again.cached) == (False, True)
    assert store.digest(tmp_path / "1") == store.digest(tmp_path / "2") == first.record["digest"]
    # Settings of another room change nothing here.
    assert data_stage(root, tmp_path / "3", "reward.beta=2.0").cached
    for number, changed in enumerate(({"code": "c2"}, {"watermark": "w2"}), 4):
        result = data_stage(root, tmp_path / str(number), **changed)
        assert not result.cached
        assert result.record["digest"] == first.record["digest"]  # so what comes after has no reason to run again
    other = data_stage(root, tmp_path / "6", "data.seed=1")
    assert not other.cached
    assert other.record["digest"] != first.record["digest"]


def test_a_key_holds_every_input_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def produce(folder: Path, *, parts: dict, **rest: object) -> store.Result:
        keys.append(store.key_of(parts))
        folder.mkdir(parents=True)
        return store.Result(folder=folder, record={}, cached=False)

    monkeypatch.setattr(store, "produce", produce)
    models = [tmp_path / "base", tmp_path / "judge"]
    config = load(overrides=[f"evaluation.base={models[0]}", f"diffusion.base={models[0]}"]).evaluation
    config = config.model_copy(update={"content_judge": str(models[1])})
    for path in models:
        path.mkdir()
        (path / "config.json").write_text("1")
    inputs = {name: tmp_path / name for name in ("data", "reward", "policy")}

    def key() -> str:
        stages.run(
            "evaluation",
            config=config,
            code_version="c",
            inputs=inputs,
            output=tmp_path / f"out{len(keys)}",
            progress=Quiet(),
        )
        return keys[-1]

    for path in inputs.values():
        path.mkdir()
        (path / "file").write_text("1")
    first = key()
    assert key() == first
    for path in inputs.values():
        (path / "file").write_text("2")
        assert key() not in keys[:-1]
    for path in models:
        (path / "config.json").write_text("2")
        assert key() not in keys[:-1]
    inputs["policy"] = tmp_path / "missing"
    with pytest.raises(ArtifactError, match=r"policy: .*missing does not exist"):
        key()
