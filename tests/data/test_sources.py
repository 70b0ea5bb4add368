"""Each source reads the layout that its data set is published in, and names what it can't use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import data_layouts as lay
import pytest

from vca.data.manifest import Manifest
from vca.data.prepare import open_source
from vca.data.settings import DataSettings
from vca.data.sources.base import Item, PassedOver, Refused
from vca.errors import DataError
from vca.records import Dialogue, PreferencePair

Prepare = Callable[..., Manifest]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Item]]:
    def items(kind: str, path: Path, **source: object) -> list[Item]:
        config = DataSettings.model_validate({"sources": [{"kind": kind, "path": str(path)} | source]})
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return list(open_source(config.sources[0], config=config, scratch=scratch).read())

    return items


def of(items: list[Item], kind: type) -> list[Item]:
    return [item for item in items if isinstance(item, kind)]


@pytest.mark.parametrize("tables", [False, True])
def test_image_reward_db(read: Callable[..., list[Item]], tmp_path: Path, tables: bool) -> None:
    items = read("image_reward", lay.image_reward_db(tmp_path / "db", prompts=2, images=3, tables=tables))
    pairs, dialogues = of(items, PreferencePair), of(items, Dialogue)
    assert len(pairs) == 2 * 3
    assert len(dialogues) == 2
    for pair in pairs:
        assert isinstance(pair, PreferencePair)
        assert int(pair.positive.uri[-6]) < int(pair.negative.uri[-6])  # the file's number is its rank - 1
        assert pair.negative_kind == "lower_score"
        assert pair.positive.key == pair.dialogue_id
    best = dialogues[0]
    assert isinstance(best, Dialogue)
    assert best.turns[0].target is not None
    assert best.turns[0].target.uri.endswith("0000-0.webp")
    assert best.initial_prompt == "painting of a lighthouse number 0"
    assert best.theme == "Scenes"


def test_image_reward_repository_and_ties(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    items = read("image_reward", lay.image_reward_repository(tmp_path))
    pairs = of(items, PreferencePair)
    assert len(pairs) == 2  # three images, two of the same rank
    assert all(pair.positive.uri.endswith("/1.webp") for pair in pairs)  # type: ignore[union-attr]


def test_image_reward_names_bad_rows(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    root = lay.image_reward_db(tmp_path / "db", prompts=1, images=3)
    path = root / "images/train/train_1/train_1.json"
    rows = json.loads(path.read_text())
    rows[0]["rank"] = "first"
    rows[1]["image_path"] = "../../etc/passwd"
    rows.append({"prompt": "no id"})
    rows.append(dict(rows[2], image_path="images/train/train_1/gone.webp"))
    lay.put(path, rows)
    reasons = sorted(item.reason for item in read("image_reward", root) if isinstance(item, Refused))
    assert reasons == ["missing_field", "missing_file", "outside_folder", "wrong_type"]


def test_in_shop(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    items = read("deepfashion", lay.in_shop(tmp_path, items=2))
    dialogues = [item for item in items if isinstance(item, Dialogue)]
    assert [dialogue.dialogue_id for dialogue in dialogues] == [
        f"deepfashion/id_0000000{item}#{variant}" for item in (0, 1) for variant in ("01", "02")
    ]
    first = dialogues[0]
    assert [turn.refined_prompt for turn in first.turns] == [
        "women's graphic tees, navy, from the front",
        "women's graphic tees, navy, from the side",
        "women's graphic tees, navy, from the back",
    ]
    assert [turn.feedback for turn in first.turns] == ["", "show it from the side", "show it from the back"]
    assert {turn.target.key for turn in first.turns if turn.target} == {"deepfashion/id_00000000"}
    assert len(items) == 4


def test_a_list_that_ends_early_is_told(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    root = lay.in_shop(tmp_path, items=1)
    path = root / "Eval/list_eval_partition.txt"
    path.write_text(path.read_text().replace("4\n", "400\n", 1))
    refused = of(read("deepfashion", root), Refused)
    assert [item.reason for item in refused] == ["invalid_line"]  # type: ignore[union-attr]
    assert "says 400 entries and ends after 4" in refused[0].detail  # type: ignore[union-attr]


def test_attribute_prediction(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    dialogue, refused = read("deepfashion", lay.attributes(tmp_path))
    assert isinstance(dialogue, Dialogue)
    assert dialogue.initial_prompt == "blouse, abstract print, sheer"
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.detail) == ("wrong_label", "category '7'; there are 2")


def test_fashion_iq(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    items = read("fashion_iq", lay.fashion_iq(tmp_path, pairs=2))
    dialogues = [item for item in items if isinstance(item, Dialogue)]
    assert [dialogue.split for dialogue in dialogues] == ["train", "train", "test", "test"]
    assert len(of(items, PassedOver)) == 2  # the published test captions have no target
    start, wish = dialogues[0].turns
    assert (start.refined_prompt, wish.feedback) == ("a dress", "is solid black and has long sleeves")
    assert start.image is not None
    assert wish.target is not None
    assert (start.image.uri[-14:], wish.target.uri[-14:]) == ("B000000000.jpg", "B000000001.png")


def test_fashion_iq_keeps_the_published_split(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    root = lay.fashion_iq(tmp_path, pairs=2)
    lay.put(root / "image_splits/split.dress.train.json", ["B000000000", "B000000001"])
    refused = of(read("fashion_iq", root), Refused)
    assert [item.reason for item in refused] == ["wrong_split"]  # type: ignore[union-attr]


def test_dialogues_and_their_keys(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    lay.dialogues(tmp_path / "d", count=2, rounds=2)
    shared = lay.dialogue(2, rounds=1)
    shared["turns"][0]["target_image"] = "images/talk-0001-1.png"
    lay.put(tmp_path / "d/talk-0002.json", shared)
    found = {item.dialogue_id: item for item in read("dialogues", tmp_path / "d") if isinstance(item, Dialogue)}
    keys = {name: [turn.target.key for turn in item.turns if turn.target] for name, item in found.items()}
    assert keys == {
        "talk-0000": ["talk-0000", "talk-0000"],
        "talk-0001": ["images/talk-0001-1.png", "talk-0001"],
        "talk-0002": ["images/talk-0001-1.png"],
    }
    assert found["talk-0000"].turns[1].feedback == "make it black"


def test_sibling_record(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    record = {
        "dialogue_id": "train_0421",
        "category": "Natural scenes",
        "initial_prompt": "A tranquil garden",
        "turns": [
            {
                "round": 1,
                "user_feedback": "with blooming flowers",
                "clarified_prompt": "A tranquil garden with blooming flowers",
                "operation": "Attention-Refine",
                "clip_score": 0.89,
                "user_satisfaction": 4.8,
            }
        ],
    }
    lay.put(tmp_path / "d/train_0421.json", record)
    (dialogue,) = read("dialogues", tmp_path / "d")
    assert isinstance(dialogue, Dialogue)
    assert dialogue.theme == "Natural scenes"
    assert [(turn.round, turn.refined_prompt, turn.satisfied) for turn in dialogue.turns] == [
        (1, "A tranquil garden", None),
        (2, "A tranquil garden with blooming flowers", True),
    ]
    assert dialogue.turns[1].operation == "Attention-Refine"


def test_broken_dialogues_are_named(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    good = lay.dialogue(0, rounds=1)
    lay.put(tmp_path / "d/images/talk-0000-1.png", lay.image_bytes(1))
    lay.put(tmp_path / "d/a.json", "{not json")
    lay.put(tmp_path / "d/b.json", b"\xff\xfe\x00")
    lay.put(tmp_path / "d/c.json", [good])
    lay.put(tmp_path / "d/d.json", good | {"turns": []})
    lay.put(tmp_path / "d/e.json", good | {"initial_prompt": "  "})
    lay.put(tmp_path / "d/f.json", good | {"turns": [dict(good["turns"][0], round=2)]})
    lay.put(tmp_path / "d/g.json", {key: value for key, value in good.items() if key != "dialogue_id"})
    lay.put(tmp_path / "d/h.json", good | {"turns": [dict(good["turns"][0], refined_prompt=3)]})
    wrong_digest = {"uri": "images/talk-0000-1.png", "sha256": "0" * 64}
    lay.put(tmp_path / "d/i.json", good | {"turns": [dict(good["turns"][0], target_image=wrong_digest)]})
    lay.put(tmp_path / "d/j.json", "[" * 100_000)
    found = {item.uri: item.reason for item in read("dialogues", tmp_path / "d") if isinstance(item, Refused)}
    assert [found.get(uri) for uri in ("d/a.json", "d/b.json", "d/c.json", "d/d.json", "d/e.json")] == [
        "invalid_json",
        "invalid_json",
        "wrong_type",
        "missing_field",
        "empty_text",
    ]
    assert sorted(found.values()) == sorted(
        ["invalid_json"] * 3
        + ["wrong_type"] * 2
        + ["missing_field"] * 2
        + ["empty_text", "wrong_label", "broken_image"]
    )


def test_preferences(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    path = lay.preferences(tmp_path / "p", count=4)
    records = json.loads(path.read_text())
    records[3]["labels"] = [0.5, 0.5]
    records += [records[0] | {"labels": labels} for labels in ([1, 1], [0, 2], ["1", "0"], [True, False], [1])]
    records.append(records[0] | {"images": ["images/0a.png"]})
    lay.put(path, records)
    items = read("preferences", path)
    pairs = [item for item in items if isinstance(item, PreferencePair)]
    assert [pair.positive.uri[-6:] for pair in pairs[:3]] == ["0a.png", "1a.png", "2a.png"]
    assert [pair.label for pair in pairs] == [1, 1, 1, 0.5]
    assert [item.reason for item in items if isinstance(item, Refused)] == ["wrong_label"] * 6


@pytest.mark.parametrize("end", ["", '"pair-3", "labels": [9223372036854775808, 0]}]'])
def test_a_label_file_that_breaks_off_keeps_what_came_before(
    end: str, read: Callable[..., list[Item]], tmp_path: Path
) -> None:
    """It ends too early, or holds a whole number beyond 64 bits, at which the parser stops."""
    path = lay.preferences(tmp_path / "p", count=5)
    text = path.read_text()
    path.write_text(text[: text.index('"pair-3"')] + end)
    items = read("preferences", path)
    assert len(of(items, PreferencePair)) == 3
    (refused,) = of(items, Refused)
    assert isinstance(refused, Refused)
    assert refused.reason == "invalid_json"
    assert "the rest of the file is lost" in refused.detail


@pytest.mark.parametrize("kind", ["image_reward", "deepfashion", "fashion_iq", "dialogues", "preferences"])
@pytest.mark.parametrize("there", [False, True])
def test_nothing_to_read_is_one_clear_line(
    read: Callable[..., list[Item]], tmp_path: Path, kind: str, there: bool
) -> None:
    path = tmp_path / "empty"
    if there:
        path.mkdir()
    with pytest.raises(DataError) as error:
        read(kind, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_share_of_a_source(read: Callable[..., list[Item]], tmp_path: Path) -> None:
    items = read("dialogues", lay.dialogues(tmp_path / "d", count=60, rounds=1), fraction=0.5)
    passed = of(items, PassedOver)
    assert {item.reason for item in passed} == {"outside_fraction"}  # type: ignore[union-attr]
    assert 18 <= len(passed) <= 42
    assert len(items) == 60
