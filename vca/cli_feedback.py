"""`vca feedback …`: what operators do with the feedback store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vca.errors import SettingsError

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


@app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(help="The data set: a folder; for preferences the JSON file.")],
    kind: Annotated[Literal["image_reward", "preferences"], typer.Option(help="Its layout.")],
    name: Annotated[str, typer.Option(help="What the source is called; empty: its kind.")] = "",
    quarantine: Annotated[Path, typer.Option(help="File for records that can't be used.")] = Path(
        "runs/feedback/quarantine.jsonl"
    ),
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Bring in comparisons that people made elsewhere; again changes nothing, interrupted it goes on."""
    from vca.progress import for_stream
    from vca.settings import load

    loaded = load(preset=preset, file=settings, overrides=sets)
    with opened(preset, settings, sets) as store:
        from vca.feedback import importing
        from vca.safety import checker

        count = importing.run(
            store,
            kind=kind,
            path=path,
            name=name,
            data=loaded.data,
            checker=checker.load(loaded.serving.safety),
            quarantine=quarantine,
            progress=for_stream(),
        )
    print(f"comparisons: {importing.told(count)}")
    if count.quarantined:
        print(f"each that can't be used is listed in {quarantine}")


@app.command("export")
def export_command(
    snapshot: Annotated[Path, typer.Argument(help="Folder of a snapshot.")],
    output: Annotated[Path, typer.Argument(help="Folder for the result; it must not exist yet.")],
    format: Annotated[Literal["openai-dpo", "hf-preferences"], typer.Option(help="Whose training code reads it.")],
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Write a snapshot's pairs for training code elsewhere. People agreed to training, not to publication."""
    from vca.feedback import exporting
    from vca.feedback.objects import Objects
    from vca.progress import for_stream
    from vca.settings import load

    objects = Objects(load(preset=preset, file=settings, overrides=sets).feedback.objects)
    done = exporting.export(snapshot, output=output, format=format, objects=objects, progress=for_stream())
    print(f"pairs: {exporting.told(done.pairs, done.left_out)}; {output}")


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


AsOf = Annotated[str | None, typer.Option(help="What the store knew at this ISO time; by default ten seconds ago.")]


@app.command("snapshot")
def snapshot_command(
    as_of: AsOf = None,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Write what people said as training data that never changes again."""
    from vca.progress import for_stream

    with opened(preset, settings, sets) as store:
        from vca.feedback.snapshot import take

        taken = take(store, as_of=_time(as_of), progress=for_stream(prefix="[feedback] "))
    print(f"{taken.folder}: {'' if taken.new else 'nothing new, '}{taken.manifest.in_words()}")


@app.command("snapshots")
def snapshots_command(preset: Preset = "local", settings: File = None, sets: Sets = []) -> None:  # noqa: B006
    """List the snapshots, newest first."""
    with opened(preset, settings, sets) as store:
        from vca.feedback.snapshots import listed

        every = listed(store)
    print(f"{'snapshot':20}  {'as of (UTC)':19}  {'pairs':>9}  {'dialogues':>9}  {'people':>6}  runs, remarks")
    for one in every:
        remarks = ", ".join([*one.runs, *([one.invalid] if one.invalid else [])])
        print(
            f"{one.snapshot_id:20}  {one.as_of:%Y-%m-%d %H:%M:%S}  {one.pairs:9,}  {one.dialogues:9,}  "
            f"{one.people:6,}  {remarks}".rstrip()
        )


@app.command("quality")
def quality_command(
    as_of: AsOf = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    preset: Preset = "local",
    settings: File = None,
    sets: Sets = [],  # noqa: B006
) -> None:
    """Tell how far people's choices can be relied on: position bias, agreement, signs of abuse."""
    from vca.progress import Quiet, for_stream

    with opened(preset, settings, sets) as store:
        from vca.feedback.reliability import measure

        progress = Quiet() if as_json else for_stream(prefix="[feedback] ")
        found = measure(store, as_of=_time(as_of), progress=progress)
    if as_json:
        print(json.dumps(found.document(), indent=1))
    else:
        for line in found.lines():
            print(line)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--as-of {text}: expected an ISO time, as in 2027-01-31T12:00:00+00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
