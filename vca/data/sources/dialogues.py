"""Custom dialogues: one JSON file per dialogue, in either of two forms.

Ours, which an export writes too: {dialogue_id, source, theme, style, initial_prompt, intent, split, role, turns:
[{round, input_modality, output_modality, user_feedback, refined_prompt, operation, image, target_image, satisfied}]},
an image being {uri, sha256, w, h, key} with `uri` relative to the folder; only dialogue_id, initial_prompt and turns
with round and refined_prompt are required, and an image may be just its path.

The one published with "Enhancing intent understanding for ambiguous prompt" (Neurocomputing 646, 130415):
{dialogue_id, category, initial_prompt, turns: [{round, user_feedback, clarified_prompt, operation, clip_score,
user_satisfaction}]}. Its first turn already answers the initial prompt, which is our round 1; satisfaction is on a
scale of 5, and 4 or more counts as satisfied.

A picture that only one dialogue uses has that dialogue's id as its key; one that several use has its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from vca.data.ledger import Spool
from vca.data.sources.base import Item, PassedOver
from vca.data.sources.files import Unusable, existing_folder, field, load_json, optional, text
from vca.data.sources.folder import FolderSource
from vca.data.splits import group_of
from vca.errors import DataError
from vca.records import Dialogue, Picture, Role, Split, Turn

SATISFIED_FROM = 4.0
ROLE_NAMES = {"rm": "reward"}  # as algorithm descriptions of the method call it


class Dialogues(FolderSource):
    """Dialogues from a folder of JSON files."""

    def read(self) -> Iterator[Item]:
        root = existing_folder(self.path, what="dialogues")
        # The labels of an export lie beside the dialogues; dialogues are in their own folder then.
        folder = root / "dialogues" if (root / "dialogues").is_dir() else root
        listing = Spool(self.scratch / "dialogues.sqlite")
        for path in folder.rglob("*.json"):
            listing.add(path.relative_to(root).as_posix(), "")
        users = Spool(self.scratch / "pictures.sqlite")
        files = 0
        for name, _ in listing.groups():
            files += 1
            for relative, dialogue_id in _picture_users(root / name):
                users.add(relative, group_of(dialogue_id))
        if not files:
            raise DataError(f"dialogues: no *.json in {folder}; expected one file per dialogue")
        users.index()
        for name, _ in listing.groups():
            yield self._dialogue(root, name, users)
        listing.close()
        users.close()

    def _dialogue(self, root: Path, name: str, users: Spool) -> Item:
        uri = f"{root.name}/{name}"
        try:
            record = load_json(root / name, uri=uri)
            dialogue_id = text(record, "dialogue_id", uri=uri)
            if not self.chosen(dialogue_id):
                return PassedOver(reason="outside_fraction")
            initial = text(record, "initial_prompt", uri=uri)
            entries = field(record, "turns", list, uri=uri)
            if not entries:
                raise Unusable("missing_field", uri, "turns: none")
            turns = _turns(self, root, entries, initial, dialogue_id, users, uri)
            theme = optional(record, "theme", str, "", uri=uri) or optional(record, "category", str, "", uri=uri)
            return Dialogue(
                dialogue_id=dialogue_id,
                source=optional(record, "source", str, self.name, uri=uri) if self.declares_split else self.name,
                theme=theme,
                style=optional(record, "style", str, "", uri=uri) or None,
                initial_prompt=initial,
                intent=optional(record, "intent", str, turns[-1].refined_prompt, uri=uri),
                turns=turns,
                split=stated_split(record, uri=uri) if self.declares_split else "train",
                role=stated_role(record, uri=uri) if self.declares_role else "unused",
            )
        except Unusable as error:
            return error.refused()


def _turns(
    source: Dialogues, root: Path, entries: list[Any], initial: str, dialogue_id: str, users: Spool, uri: str
) -> tuple[Turn, ...]:
    sibling = isinstance(entries[0], dict) and "clarified_prompt" in entries[0]
    turns = [Turn(round=1, feedback="", refined_prompt=initial, operation="initial")] if sibling else []
    for number, entry in enumerate(entries, start=1):
        where = f"{uri} turn {number}"
        if field(entry, "round", int, uri=where) != number:
            raise Unusable("wrong_label", where, f"round {entry['round']}, expected {number}")
        if sibling:
            rating = optional(entry, "user_satisfaction", float, -1.0, uri=where)
            satisfied = None if rating < 0 else rating >= SATISFIED_FROM
        else:
            satisfied = field(entry, "satisfied", bool, uri=where) if entry.get("satisfied") is not None else None
        turns.append(
            Turn(
                round=len(turns) + 1,
                feedback=optional(entry, "user_feedback", str, "", uri=where),
                refined_prompt=text(entry, "clarified_prompt" if sibling else "refined_prompt", uri=where),
                operation=optional(entry, "operation", str, "initial" if not turns else "edit", uri=where),
                image=_picture(source, root, entry.get("image"), dialogue_id, users, where),
                target=_picture(source, root, entry.get("target_image"), dialogue_id, users, where),
                satisfied=satisfied,
                input_modality=optional(entry, "input_modality", str, "text", uri=where),
                output_modality=optional(entry, "output_modality", str, "image", uri=where),
            )
        )
    return tuple(turns)


def _picture(source: Dialogues, root: Path, entry: Any, dialogue_id: str, users: Spool, uri: str) -> Picture | None:
    if entry is None:
        return None
    relative = entry if isinstance(entry, str) else text(entry, "uri", uri=uri)
    key = picture_key(entry, relative, group_of(dialogue_id), users, uri=uri)
    picture = source.picture(relative, key=key, root=root)
    check_sha256(entry, picture)
    return picture


def picture_key(entry: Any, relative: str, own: str, users: Spool, *, uri: str) -> str:
    """The key that the record states, else `own` where nobody else uses the picture, else its path."""
    if isinstance(entry, dict) and entry.get("key") is not None:
        return text(entry, "key", uri=uri)
    return own if set(users.get(relative)) <= {own} else relative


def check_sha256(entry: Any, picture: Picture) -> None:
    """Errors: Unusable where the record states another digest than the file has."""
    stated = entry.get("sha256") if isinstance(entry, dict) else None
    if stated is not None and stated != hashlib.sha256(picture.data).hexdigest():
        raise Unusable("broken_image", picture.uri, "sha256 differs from the one in the record")


def stated_split(record: dict[str, Any], *, uri: str) -> Split:
    value = text(record, "split", uri=uri)
    if value not in get_args(Split):
        raise Unusable("wrong_split", uri, f"split {value!r}; allowed: {', '.join(get_args(Split))}")
    return value  # type: ignore[return-value]


def stated_role(record: dict[str, Any], *, uri: str) -> Role:
    value = text(record, "role", uri=uri)
    value = ROLE_NAMES.get(value, value)
    if value not in get_args(Role):
        raise Unusable("wrong_split", uri, f"role {value!r}; allowed: {', '.join(get_args(Role))}")
    return value  # type: ignore[return-value]


def _picture_users(path: Path) -> Iterator[tuple[str, str]]:
    """(picture, dialogue id) for what can be read of the file; what can't is refused when it is read in earnest."""
    try:
        record = load_json(path, uri="")
    except Unusable:
        return
    if not isinstance(record, dict) or not isinstance(record.get("turns"), list):
        return
    for turn in record["turns"]:
        for name in ("image", "target_image"):
            entry = turn.get(name) if isinstance(turn, dict) else None
            relative = entry.get("uri") if isinstance(entry, dict) else entry
            if isinstance(relative, str):
                yield relative, str(record.get("dialogue_id"))
