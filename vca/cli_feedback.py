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
    """The store that the settings name. Raises SettingsError where the extra `feedback` is not installed."""
    from vca.errors import SettingsError
    from vca.settings import load

    loaded = load(preset=preset, file=settings, overrides=sets)
    try:
        from vca.feedback.store import Store
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the feedback store needs {error.name}; install the project with its extra `feedback`"
        ) from None
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
