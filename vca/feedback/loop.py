"""Closing the loop: `vca run` trains on what people said since."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vca.errors import SettingsError
from vca.feedback.settings import FeedbackSettings
from vca.progress import Progress
from vca.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a run is to train on besides: overrides of its settings. snapshot_id: None where there is nothing usable."""

    overrides: tuple[str, ...]
    snapshot_id: str | None


def hear(settings: Settings, *, progress: Progress) -> Heard:
    """Take a snapshot of the store, if there is one, and make it a source of data.

    With nothing new it is the same snapshot, and every result that was made with it is found again. Raises as
    `vca.feedback.snapshot.take` and `Store.open` do.
    """
    feedback = settings.feedback
    if not feedback.train or not _exists(feedback) or any(one.kind == "feedback" for one in settings.data.sources):
        return Heard(overrides=(), snapshot_id=None)
    try:
        from vca.feedback.snapshot import take
        from vca.feedback.store import Store
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"there is feedback in {feedback.url}, and reading it needs {error.name}; install the project with its "
            "extra `feedback`, or set feedback.train=false"
        ) from None
    store = Store.open(feedback)
    try:
        taken = take(store, progress=progress)
    finally:
        store.close()
    progress.say(f"feedback: {taken.manifest.in_words()}")
    if not taken.manifest.usable:
        progress.say("feedback: nothing to train on yet; the run goes without")
        return Heard(overrides=(), snapshot_id=None)
    objects = feedback.objects if "://" in feedback.objects else str(Path(feedback.objects).resolve())
    source = {"kind": "feedback", "path": str(taken.folder.resolve()), "objects": objects}
    sources = [*(one.model_dump(mode="json") for one in settings.data.sources), source]
    return Heard(overrides=(f"data.sources={json.dumps(sources)}",), snapshot_id=taken.snapshot_id)


def remember(settings: FeedbackSettings, *, run: Path, snapshot_id: str) -> list[Path]:
    """Write down that a run trained on a snapshot: erasing somebody in it names the run.

    Where somebody was erased while the run went on, that erasure can't have seen what the run has written since: what
    quotes people is removed now, from the run and the cache beside it. What was removed.
    """
    from vca.feedback import erasure
    from vca.feedback.snapshots import record_run
    from vca.feedback.store import Store

    store = Store.open(settings)
    try:
        invalid = record_run(store, run_id=run.name, snapshot_id=snapshot_id, folder=run)
    finally:
        store.close()
    return erasure.remove_quotes(run.parent, {snapshot_id}) if invalid == erasure.ERASED else []


def _exists(settings: FeedbackSettings) -> bool:
    """An embedded store is there once somebody used it; another one is there because its address was given."""
    return not settings.url.startswith("sqlite") or Path(settings.url.removeprefix("sqlite:///")).is_file()
