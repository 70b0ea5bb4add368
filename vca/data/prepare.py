"""Data preparation: every source's records checked, filtered, split, given a role and written, and all of it counted.

The folder appears whole or not at all: it is built beside its place and renamed at the end, with the manifest last.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vca.data.filters import StyleFilter, open_checker, unclear, unsafe
from vca.data.images import BadImage, Stored, store
from vca.data.ledger import Ledger
from vca.data.manifest import FILE_NAME, Manifest, SourceCounts, digest_of
from vca.data.negatives import NegativeMaker
from vca.data.quarantine import FILE_NAME as QUARANTINE
from vca.data.quarantine import Quarantine
from vca.data.settings import (
    AnySource,
    DataSettings,
    EmojiDialogSettings,
    FeedbackSourceSettings,
    FolderSettings,
    NegativeKind,
    source_name,
)
from vca.data.shards import ShardWriter
from vca.data.sources.base import PassedOver, Refused, Source
from vca.data.splits import keys_of, role_of, side_of
from vca.errors import DataError, ResourceError
from vca.progress import Progress
from vca.records import Dialogue, Picture, PreferencePair, Split, StageResult

PAIR_ROLES = ("reward", "validation", "test")
DIALOGUE_ROLES = ("diffusion", "validation", "test")
CACHE_BYTES = 32 * 2**20  # of checked pictures, since the pictures of one prompt come in many pairs


def run(config: DataSettings, *, inputs: dict[str, Path], output: Path, progress: Progress) -> StageResult:
    """Prepare `config.sources` into the folder `output`, replacing what lies there. `inputs` is not used.

    Errors: DataError for missing, empty or too broken data; ResourceError where the disk is full.
    """
    parent = output.absolute().parent
    building = parent / f".{output.name}.building"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(building, ignore_errors=True)  # what a killed run left
        building.mkdir()
    except OSError as error:
        raise ResourceError(f"can't write to {parent} ({error.strerror}); use a folder that can be written") from None
    try:
        with _disk_errors(parent):
            manifest = _build(config, building, output, progress)
            _put_in_place(building, output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    progress.say(f"data: {manifest.total} records in {len(manifest.shards)} shards, {output}")
    metrics = {"total": manifest.total, "digest": manifest.digest, "watermark": manifest.watermark}
    return StageResult(output=output, metrics=metrics | {f"rows.{key}": rows for key, rows in _rows(manifest).items()})


def watermark(config: DataSettings, *, scratch: Path | None = None) -> str:
    """The state of all sources, "name@state" each, without reading records. Errors: DataError for a missing one."""
    sources = [open_source(settings, config=config, scratch=scratch or Path()) for settings in config.sources]
    return " ".join(f"{source.name}@{source.watermark()}" for source in sources)


def open_source(settings: AnySource, *, config: DataSettings, scratch: Path) -> Source:
    """The source that these settings describe."""
    if isinstance(settings, EmojiDialogSettings):
        from vca.data.emoji.source import EmojiSource

        return EmojiSource(settings=settings, seed=config.seed, name=source_name(settings))
    if isinstance(settings, FeedbackSourceSettings):
        from vca.data.sources.feedback import Feedback

        return Feedback(settings=settings, name=source_name(settings))
    from vca.data.sources.deepfashion import DeepFashion
    from vca.data.sources.dialogues import Dialogues
    from vca.data.sources.fashion_iq import FashionIQ
    from vca.data.sources.image_reward import ImageReward
    from vca.data.sources.preferences import Preferences

    kinds: dict[str, type[ImageReward | DeepFashion | FashionIQ | Dialogues | Preferences]] = {
        "image_reward": ImageReward,
        "deepfashion": DeepFashion,
        "fashion_iq": FashionIQ,
        "dialogues": Dialogues,
        "preferences": Preferences,
    }
    return kinds[settings.kind](settings, seed=config.seed, max_file_mb=config.max_file_mb, scratch=scratch)


def _build(config: DataSettings, building: Path, output: Path, progress: Progress) -> Manifest:
    scratch = building / "scratch"
    scratch.mkdir()
    writer = ShardWriter(building, shard_bytes=config.shard_mb * 2**20)
    counts: dict[str, SourceCounts] = {}
    states = []
    with Quarantine(building / QUARANTINE) as quarantine:
        desk = _Desk(config, writer=writer, quarantine=quarantine, ledger=Ledger(scratch / "ledger.sqlite"))
        for settings in config.sources:
            source_scratch = scratch / f"{len(counts)}"
            source_scratch.mkdir()
            source = open_source(settings, config=config, scratch=source_scratch)
            states.append(f"{source.name}@{source.watermark()}")
            kinds = settings.negatives if isinstance(settings, FolderSettings) and source.make_negatives else ()
            counts[source.name] = desk.read(source, progress, negatives=kinds)
            shutil.rmtree(source_scratch)
        desk.ledger.close()
    shutil.rmtree(scratch)
    _refuse_bad_shares(config, counts, building / QUARANTINE, output)
    shards = writer.close()
    if not shards:
        told = "; ".join(f"{name}: {_told(count)}" for name, count in counts.items())
        raise DataError(f"nothing to train on ({told}); check data.sources, the filters and the fractions")
    manifest = Manifest(
        watermark=" ".join(states),
        digest=digest_of(shards),
        total=sum(shard.rows for shard in shards),
        shards=shards,
        sources=counts,
        settings=config.model_dump(mode="json"),
    )
    with (building / FILE_NAME).open("w", encoding="utf-8") as file:
        json.dump(manifest.model_dump(mode="json"), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return manifest


class _Checked(NamedTuple):
    """useless: the filter that takes the picture out, if one does."""

    stored: Stored
    useless: str | None


class _Desk:
    """Decides on each record, one after the other."""

    def __init__(self, config: DataSettings, *, writer: ShardWriter, quarantine: Quarantine, ledger: Ledger) -> None:
        self.config = config
        self.writer = writer
        self.quarantine = quarantine
        self.ledger = ledger
        self.style = StyleFilter(limit=config.style_keyword_limit)
        self.negatives = NegativeMaker(seed=config.seed)
        self.safety = open_checker(config.unsafe_images) if config.unsafe_images is not None else None
        self._pictures: OrderedDict[str, _Checked] = OrderedDict()
        self._cached = 0

    def read(self, source: Source, progress: Progress, *, negatives: Sequence[NegativeKind]) -> SourceCounts:
        """Every record of `source`, with the pairs of these kinds made. Errors: DataError where it has none."""
        tally: dict[str, Counter[str]] = {
            name: Counter() for name in ("accepted", "filtered", "written", "written_kinds", "negatives")
        }
        seen = straddles = made = 0
        with progress.task(f"data: {source.name}", total=source.total(), unit="records") as task:
            for item in source.read():
                seen += 1
                if isinstance(item, PassedOver):
                    tally["filtered"][item.reason] += 1
                elif isinstance(item, Refused):
                    self.quarantine.add(item, source=source.name)
                else:
                    outcome = self._decide(item, source)
                    if isinstance(outcome, Refused):
                        self.quarantine.add(outcome, source=source.name)
                    elif outcome == "straddles":
                        straddles += 1
                    elif isinstance(outcome, str):
                        tally["filtered"][outcome] += 1
                    else:
                        kind = "pairs" if isinstance(outcome, PreferencePair) else "dialogues"
                        tally["accepted"][f"{kind}/{outcome.split}/{outcome.role}"] += 1
                        made += self._write(outcome, negatives, tally)
                task.advance()
        if not seen:
            raise DataError(f"{source.name} is empty: not one record found; check data.sources")
        return SourceCounts(
            seen=seen,
            straddles=straddles,
            made_pairs=made,
            people=source.people,
            quarantined=dict(sorted(self.quarantine.by_source.get(source.name, Counter()).items())),
            **{name: dict(sorted(counter.items())) for name, counter in tally.items()},
        )

    def _decide(self, record: Dialogue | PreferencePair, source: Source) -> Dialogue | PreferencePair | Refused | str:
        """The record as it will be written, or why it won't be: a refusal, "straddles", or a filter's name."""
        pair = isinstance(record, PreferencePair)
        record_id = record.pair_id if isinstance(record, PreferencePair) else record.dialogue_id
        prompts = _prompts(record)
        if not all(prompt.strip() for prompt in prompts):
            return Refused(reason="empty_text", uri=record_id, detail="a prompt is empty")
        if not self.ledger.first_time(f"{'pair' if pair else 'dialogue'} {record_id}"):
            return Refused(reason="duplicate_id", uri=record_id, detail="the id has come before")
        if any(map(self.style.excessive, prompts)):
            return "style_keywords"
        split = self._side(record, source)
        if split is None:
            return "straddles"
        try:
            checked = {picture.uri: self._check(picture) for picture in _pictures(record)}
        except BadImage as error:
            return Refused(reason=error.reason, uri=_blame(record, error), detail=str(error))
        for picture in checked.values():
            if picture.useless:
                return picture.useless
        config = self.config
        role = record.role
        if not source.declares_role:
            role = role_of(
                (record.dialogue_id or record_id) if isinstance(record, PreferencePair) else record_id,
                split=split,
                test_fraction=config.test_fraction,
                reward=config.reward_fraction,
                diffusion=config.diffusion_fraction,
                validation=config.validation_fraction,
                seed=config.seed,
            )
        return replace(_with_pictures(record, checked), split=split, role=role)

    def _side(self, record: Dialogue | PreferencePair, source: Source) -> Split | None:
        keys = keys_of(record)
        if not source.declares_split:
            return side_of(keys, test_fraction=self.config.test_fraction, seed=self.config.seed)
        return record.split if self.ledger.keeps_side(keys, record.split) else None

    def _check(self, picture: Picture) -> _Checked:
        checked = self._pictures.get(picture.uri)
        if checked is not None:
            self._pictures.move_to_end(picture.uri)
            return checked
        try:
            stored = store(picture.data, image_size=self.config.image_size, max_pixels=self.config.max_pixels)
        except BadImage as error:
            error.add_note(picture.uri)
            raise
        checked = _Checked(stored, self._useless(stored))
        self._pictures[picture.uri] = checked
        self._cached += len(stored.data)
        while self._cached > CACHE_BYTES:
            _, oldest = self._pictures.popitem(last=False)
            self._cached -= len(oldest.stored.data)
        return checked

    def _useless(self, stored: Stored) -> str | None:
        """The filter that takes the picture out, if one does."""
        reason = unclear(stored, min_side=self.config.min_side, min_sharpness=self.config.min_sharpness)
        return reason or (unsafe(stored, checker=self.safety) if self.safety else None)

    def _write(
        self, record: Dialogue | PreferencePair, negatives: Sequence[NegativeKind], tally: dict[str, Counter[str]]
    ) -> int:
        """Write what the record's role needs; how many pairs were made of it."""
        if isinstance(record, PreferencePair):
            if record.role in PAIR_ROLES:
                self._put(record, tally)
            return 0
        if record.role in DIALOGUE_ROLES:
            self._put(record, tally)
        made = 0
        if record.role in PAIR_ROLES:
            for pair in self.negatives.pairs(record, kinds=negatives):
                self._put(pair, tally)
                made += 1
        return made

    def _put(self, record: Dialogue | PreferencePair, tally: dict[str, Counter[str]]) -> None:
        self.writer.write(record)
        if isinstance(record, PreferencePair):
            tally["written"][f"pairs/{record.split}/{record.role}"] += 1
            tally["written_kinds"][f"{record.role}/{record.kind}"] += 1
            tally["negatives"][record.negative_kind] += 1
        else:
            tally["written"][f"dialogues/{record.split}/{record.role}"] += 1


def _prompts(record: Dialogue | PreferencePair) -> list[str]:
    if isinstance(record, PreferencePair):
        return [record.prompt]
    return [record.initial_prompt, record.intent, *(turn.refined_prompt for turn in record.turns)]


def _pictures(record: Dialogue | PreferencePair) -> list[Picture]:
    if isinstance(record, PreferencePair):
        return [record.positive, record.negative]
    return [picture for turn in record.turns for picture in (turn.image, turn.target) if picture]


def _with_pictures(record: Dialogue | PreferencePair, checked: dict[str, _Checked]) -> Dialogue | PreferencePair:
    def changed(picture: Picture) -> Picture:
        return replace(picture, data=checked[picture.uri].stored.data)

    if isinstance(record, PreferencePair):
        return replace(record, positive=changed(record.positive), negative=changed(record.negative))
    turns = tuple(
        replace(turn, image=turn.image and changed(turn.image), target=turn.target and changed(turn.target))
        for turn in record.turns
    )
    return replace(record, turns=turns)


def _blame(record: Dialogue | PreferencePair, error: BadImage) -> str:
    notes = getattr(error, "__notes__", [])
    return notes[0] if notes else record.source


def _refuse_bad_shares(config: DataSettings, counts: dict[str, SourceCounts], lines: Path, output: Path) -> None:
    for name, count in counts.items():
        bad = sum(count.quarantined.values())
        if bad > config.max_bad_share * count.seen:
            kept = output.absolute().with_name(f"{output.name}.{QUARANTINE}")
            os.replace(lines, kept)
            reasons = ", ".join(f"{reason} {number}" for reason, number in count.quarantined.items())
            raise DataError(
                f"{name}: {bad} of {count.seen} records ({bad / count.seen:.1%}) can't be used ({reasons}), more than "
                f"data.max_bad_share = {config.max_bad_share:.1%}; each is listed in {kept}"
            )


def _told(count: SourceCounts) -> str:
    accepted = sum(count.accepted.values())
    parts = {"accepted": accepted, **count.filtered, "straddles": count.straddles, **count.quarantined}
    return f"{count.seen} seen, " + ", ".join(f"{name} {number}" for name, number in parts.items())


def _rows(manifest: Manifest) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for shard in manifest.shards:
        rows[f"{shard.kind}.{shard.role}"] += shard.rows
    return dict(sorted(rows.items()))


def _put_in_place(building: Path, output: Path) -> None:
    """Rename the finished folder to its place; what lay there goes only once the new one is complete."""
    descriptor = os.open(building, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    old = building.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(building, output)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"no space left for the data set in {folder} ({error}); free some, or use another disk"
            ) from None
        raise
