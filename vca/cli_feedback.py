"""`vca feedback …`: what operators do with the feedback store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vca.feedback.store import Store

app = typer.Typer(
    help="The feedback store: what people said, snapshots of it, and its erasure.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Preset = Annotated[str, typer.Option(help="Settings to start from: local, recommended or paper.")]
File = Annotated[Path | None, typer.Option("--settings", help="YAML file with the settings that differ.")]
Sets = Annotated[list[str], typer.Option("--set", help="One setting: --set feedback.url=…; repeatable.")]


@contextmanager
def opened(preset: str, settings: Path | None, sets: list[str]) -> Iterator[Store]:
    """The store that the settings name."""
    from vca.feedback.store import Store
    from vca.settings import load

    loaded = load(preset=preset, file=settings, overrides=sets)
    store = Store.open(loaded.feedback)
    try:
        yield store
    finally:
        store.close()


@app.command("migrate")
def migrate_command(preset: Preset = "local", settings: File = None, sets: Sets = []) -> None:  # noqa: B006
    """Bring the store's tables to this version; does nothing where they are."""
    from vca.feedback.database import Database
    from vca.settings import load

    loaded = load(preset=preset, file=settings, overrides=sets)
    database = Database(loaded.feedback.url)
    try:
        database.migrate()
    finally:
        database.close()
    print("the feedback store's tables are at this version")


@app.command("erase")
def erase_command(
    subject: Annotated[str | None, typer.Option(help="Number of the person.")] = None,
    identity: Annotated[str | None, typer.Option(help="As whom the person signs in.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder with results that may have been trained on the person.")] = Path(
        "runs"
    ),
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Erase a person everywhere, and say what was done; with neither option, finish what was interrupted."""
    import json

    from vca.errors import SettingsError

    if subject and identity:
        raise SettingsError("--subject and --identity: give one of them")
    with opened(preset, settings, sets) as store:
        from vca.feedback import erasure

        if subject is None and identity is not None:
            subject = erasure.subject_of(store, identity)
        if subject is None:
            print(f"{erasure.finish(store, runs=runs)} interrupted erasures finished")
            return
        done = erasure.erase(store, subject_id=subject, runs=runs)
    print(f"person {done.subject_id}: erased, request {done.id}")
    for name, receipt in done.receipts.items():
        print(f"  {name}: {json.dumps(receipt)}")
    print(f"  snapshots that no longer load: {', '.join(done.snapshots) or 'none'}")
    for release in done.releases:
        print(f"  trained on them, decide whether to train again: {release['folder']}")


features = typer.Typer(help="Feast: statistics of people, dialogues and prompts.", no_args_is_help=True)
app.add_typer(features, name="features")


@features.command("apply")
def features_apply(preset: Preset = "local", settings: File = None, sets: Sets = []) -> None:  # noqa: B006
    """Tell Feast of the views; does nothing where it knows them."""
    with opened(preset, settings, sets) as store:
        from vca.feedback.feature_repo import apply

        apply(store)
    print("Feast knows subject_stats, dialogue_stats and prompt_stats")


@features.command("materialize")
def features_materialize(preset: Preset = "local", settings: File = None, sets: Sets = []) -> None:  # noqa: B006
    """Bring the offline files up to the store, and their newest rows online."""
    with opened(preset, settings, sets) as store:
        from vca.feedback.feature_repo import materialize

        added = materialize(store)
    print(", ".join(f"{view}: {count} new rows" for view, count in added.items()))


@features.command("push")
def features_push(
    follow: Annotated[bool, typer.Option(help="Go on until stopped.")] = False,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Bring online what people did since the last push."""
    import time

    with opened(preset, settings, sets) as store:
        from vca.feedback.feature_repo import push

        total = 0
        while (count := push(store)) or follow:
            total += count
            if not count:
                time.sleep(1.0)
    print(f"{total} events pushed")
