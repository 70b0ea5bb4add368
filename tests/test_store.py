"""Results are complete, verified and keyed by what they were made from, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca import store
from vca.errors import ArtifactError, ResourceError
from vca.progress import Plain, Quiet

PARTS = {"stage": "data", "settings": {"n": 1}}


class Maker:
    """Counts how often it ran and what it found on starting."""

    def __init__(self, text: str = "content") -> None:
        self.text, self.found = text, []

    def __call__(self, folder: Path) -> dict[str, int]:
        self.found.append(sorted(path.name for path in folder.iterdir()))
        (folder / "part").mkdir(exist_ok=True)
        (folder / "part" / "a.bin").write_text(self.text)
        return {"rows": 3}


class Stop(Exception):
    pass


def interrupted(folder: Path) -> dict[str, int]:
    (folder / "checkpoint").write_text("half")
    raise Stop


def produce(folder: Path, make, parts=PARTS, **options) -> store.Result:
    return store.produce(folder, stage="data", parts=parts, make=make, progress=Quiet(), **options)


def test_the_same_key_runs_once_and_records_what_it_cost(tmp_path: Path) -> None:
    make = Maker()
    first, second = produce(tmp_path / "out", make), produce(tmp_path / "out", make)
    assert (first.cached, second.cached, len(make.found)) == (False, True, 1)
    assert first.record == second.record == store.read_record(tmp_path / "out")
    assert first.record["metrics"] == {"rows": 3}
    assert first.record["made_from"] == PARTS
    assert first.record["peak_rss_mb"] > 1
    assert list(first.record["files"]) == ["part/a.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_another_key_never_overwrites(tmp_path: Path) -> None:
    produce(tmp_path / "out", Maker())
    with pytest.raises(ArtifactError, match="other settings, code or inputs"):
        produce(tmp_path / "out", Maker("other"), parts={"stage": "data", "settings": {"n": 2}})
    assert (tmp_path / "out/part/a.bin").read_text() == "content"


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="no result of this program"):
        produce(tmp_path / "out", Maker())
    assert (tmp_path / "out/thesis.txt").read_text() == "years of work"


def test_an_interrupted_attempt_is_no_result_and_is_not_built_on(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        produce(tmp_path / "out", interrupted)
    assert not (tmp_path / "out").exists()
    make = Maker()
    produce(tmp_path / "out", make)
    assert make.found == [[]]


def test_a_resumable_stage_finds_its_own_checkpoint_and_no_other(tmp_path: Path) -> None:
    for parts, found in ((PARTS, ["checkpoint"]), ({"stage": "data", "settings": {"n": 2}}, [])):
        with pytest.raises(Stop):
            produce(tmp_path / str(len(found)), interrupted, resumable=True)
        make = Maker()
        produce(tmp_path / str(len(found)), make, parts=parts, resumable=True)
        assert make.found == [found]


def test_sigkill_in_the_middle_leaves_nothing_that_counts(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from vca import store
from vca.progress import Quiet
def make(folder):
    (folder / "a.bin").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
store.produce(Path({str(tmp_path / "out")!r}), stage="data", parts={PARTS!r}, make=make, progress=Quiet())
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    make = Maker()
    assert not produce(tmp_path / "out", make).cached  # the lock of the dead process is gone as well
    assert make.found == [[]]


@pytest.mark.parametrize("harm", ["change", "remove", "truncate"])
def test_a_damaged_result_is_made_again_and_said_to_be(tmp_path: Path, harm: str, capsys) -> None:
    produce(tmp_path / "out", Maker())
    file = tmp_path / "out/part/a.bin"
    file.unlink() if harm == "remove" else file.write_text("c0ntent" if harm == "change" else "")
    make = Maker()
    result = store.produce(tmp_path / "out", stage="data", parts=PARTS, make=make, progress=Plain())
    assert not result.cached
    assert file.read_text() == "content"
    assert "part/a.bin is damaged" in capsys.readouterr().out


def test_an_input_that_changed_since_it_was_made_is_refused(tmp_path: Path) -> None:
    result = produce(tmp_path / "out", Maker())
    assert store.input_digest(tmp_path / "out", name="data") == result.record["digest"]
    (tmp_path / "out/part/a.bin").write_text("c0ntent")
    with pytest.raises(ArtifactError, match=r"data: .*part/a\.bin is corrupt"):
        store.input_digest(tmp_path / "out", name="data")
    with pytest.raises(ArtifactError, match="does not exist"):
        store.input_digest(tmp_path / "nowhere", name="data")


def test_a_placed_copy_outlives_the_original(tmp_path: Path) -> None:
    result = produce(tmp_path / "out", Maker())
    store.place(result.folder, tmp_path / "copy")
    assert (tmp_path / "copy/part/a.bin").stat().st_ino == (tmp_path / "out/part/a.bin").stat().st_ino
    store.place(result.folder, tmp_path / "copy")  # once more, over itself
    (tmp_path / "out/part/a.bin").unlink()
    assert store.input_digest(tmp_path / "copy", name="data") == result.record["digest"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="no result of this program"):
        store.place(tmp_path / "copy", tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()


NAMES = st.text("abcdef", min_size=1, max_size=4)


@given(st.dictionaries(NAMES, st.binary(max_size=8), min_size=1, max_size=4), st.data())
def test_a_digest_tells_names_and_contents_apart_and_nothing_else(tmp_path_factory, files, data) -> None:
    def write(content: dict[str, bytes], order: list[str]) -> str:
        folder = tmp_path_factory.mktemp("d")
        for name in order:
            (folder / name).write_bytes(content[name])
        (folder / store.RECORD).write_text(str(order))  # the record describes the content, it is none
        return store.digest(folder)

    original = write(files, list(files))
    assert write(files, data.draw(st.permutations(list(files)))) == original
    name = data.draw(st.sampled_from(sorted(files)))
    assert write({**files, name: files[name] + b"x"}, list(files)) != original
    renamed = {(key + "x" if key == name else key): value for key, value in files.items()}
    assert write(renamed, list(renamed)) != original


def test_a_full_disk_is_one_line_for_people(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no space left on the disk of"), store.disk_errors(tmp_path):
        Path("/dev/full").write_text("x")
    # What libraries in Rust and C++ make of it.
    with pytest.raises(ResourceError), store.disk_errors(tmp_path):
        raise RuntimeError('IoError(Os { code: 28, message: "No space left on device" })')
    with pytest.raises(FileNotFoundError), store.disk_errors(tmp_path):
        (tmp_path / "missing").read_text()


def test_a_reader_never_sees_half_a_json(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a.json", {"n": 1})
    with pytest.raises(TypeError):
        store.write_json(tmp_path / "a.json", {"n": 2, "no json": os})
    assert (tmp_path / "a.json").read_text() == '{\n "n": 1\n}'
