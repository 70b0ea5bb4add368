"""How far what people said can be relied on: position bias, agreement, and choices that no honest crowd makes.

Choices are read from a Parquet file (`CHOICES`), in which they may be far more than fit into memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import chdtrc

from vca.feedback.rules import CHOICES, Said, Settled, Told
from vca.feedback.sheets import batch_of
from vca.feedback.snapshot_files import TIME, Slots

ALARM_P = 1e-3  # a slot's share is no accident below this
MINUTE, HOUR = 60 * 10**6, 3600 * 10**6  # microseconds
MEMORY = "128MB"  # for sorting and grouping choices
AXES = ("alignment", "coherence", "style")
CHOICE_ROWS = pa.schema(
    [
        ("subject_id", pa.string()),
        ("received", pa.int64()),  # microseconds since 1970
        ("prompt_hmac", pa.string()),
        ("shown", pa.string()),  # the pictures shown, whatever their order
        ("image", pa.string()),  # the one that a pick is for
        ("phash", pa.string()),
    ]
)
RATING_ROWS = pa.schema([("image", pa.string()), ("subject_id", pa.string()), *((axis, pa.int8()) for axis in AXES)])

Spans = list[tuple[int, int]]  # first and last microsecond of each, in order, none touching another


def slots(picks: Sequence[int]) -> Slots:
    """picks: how many fell on each slot. Chi-square against an even spread, with len(picks) - 1 degrees of freedom."""
    n, total = len(picks), sum(picks)
    even = total / n
    chi2 = sum((one - even) ** 2 for one in picks) / even if total else 0.0
    return Slots(
        n=n,
        picks=tuple(picks),
        chi2=round(chi2, 6),
        p=float(chdtrc(n - 1, chi2)) if n > 1 else 1.0,
        weights=tuple(round((total + n) / (n * (one + 1)), 6) for one in picks),
    )


class Probed(NamedTuple):
    """How often a person who was shown the same again chose the same."""

    agreed: int = 0
    asked: int = 0


class Tally:
    """Counts over all dialogues, and the file of choices. Memory grows with the people, not with what they say.

    ratings: where to write these too, and with the choices what was shown, to see how far people agree.
    """

    def __init__(self, choices: Path, *, ratings: Path | None = None) -> None:
        self.picks: dict[int, Counter[int]] = defaultdict(Counter)  # slots shown -> slot -> picks
        self.probed: dict[str, Probed] = defaultdict(Probed)
        self.kinds: Counter[str] = Counter()
        self.gates: Counter[str] = Counter()
        self.negatives = 0
        self._choices = pq.ParquetWriter(choices, CHOICE_ROWS, compression="none", use_dictionary=False)
        self._ratings = pq.ParquetWriter(ratings, RATING_ROWS, compression="none") if ratings else None

    def add(self, batch: Iterable[tuple[Told, Settled]]) -> None:
        choices: list[tuple[Any, ...]] = []
        rated: list[tuple[Any, ...]] = []
        for told, settled in batch:
            self._count(told, settled)
            for event in told.events:
                self.kinds[event.kind] += 1
                if event.gates:
                    self.gates[_worst(event.gates.values())] += 1
                if event.kind in CHOICES and not told.imported:
                    choices.append(_choice(told, event, shown=self._ratings is not None))
                elif event.kind == "rate" and self._ratings is not None:
                    image = told.candidates[event.target[0]].image_sha256
                    rated.append((image, told.subject_id, *(event.body.get(axis) for axis in AXES)))
        told = CHOICE_ROWS.set(CHOICE_ROWS.get_field_index("received"), pa.field("received", TIME))
        self._choices.write_batch(batch_of(choices, told).cast(CHOICE_ROWS))
        if self._ratings is not None:
            self._ratings.write_batch(batch_of(rated, RATING_ROWS))

    def _count(self, told: Told, settled: Settled) -> None:
        for agreed in settled.probes.values():
            before = self.probed[told.subject_id]
            self.probed[told.subject_id] = Probed(before.agreed + agreed, before.asked + 1)
        for place, event in settled.standing.items():
            shown = told.shown[place]
            if shown.probe:
                continue
            if event.kind == "all_bad":
                self.negatives += 1
            elif event.kind in ("pick", "accept") and len(shown.slots) > 1:
                self.picks[len(shown.slots)][shown.slots.index(event.target[0])] += 1

    def close(self) -> None:
        self._choices.close()
        if self._ratings is not None:
            self._ratings.close()

    def slots(self) -> tuple[Slots, ...]:
        return tuple(slots([counts[slot] for slot in range(n)]) for n, counts in sorted(self.picks.items()))


def _worst(verdicts: Collection[str]) -> str:
    return next(one for one in ("fail", "unknown", "pass") if one in verdicts)


def _choice(told: Told, event: Said, *, shown: bool) -> tuple[Any, ...]:
    """A row of choices; `shown` makes it tell which pictures there were to choose from."""
    prompt, pictures = told.rounds[event.round_id].prompt_hmac, None
    if shown:
        slots = told.shown[event.presentation_id].slots
        pictures = "".join(sorted((told.candidates[slot].image_sha256 or slot)[:16] for slot in slots))
    if event.kind not in ("pick", "accept"):
        return (told.subject_id, event.received_at, prompt, pictures, None, None)
    picked = told.candidates[event.target[0]]
    return (told.subject_id, event.received_at, prompt, pictures, picked.image_sha256, picked.phash)


def bursts(choices: Path, *, events: int) -> dict[str, Spans]:
    """By person: when they made `events` choices or more within a minute."""
    sql = """
        SELECT subject_id, begun, received FROM (
            SELECT *, lag(received, ?) OVER (PARTITION BY subject_id ORDER BY received) AS begun FROM choices
        ) WHERE received - begun < ? ORDER BY subject_id, received
    """
    return {str(name): spans for (name,), spans in _spans(_asked(choices, sql, events - 1, MINUTE), 1)}


def clusters(choices: Path, *, subjects: int) -> dict[tuple[str, str], Spans]:
    """By prompt and picture (their hashes): when so many people chose that picture within an hour."""
    sql = """
        WITH once AS (
            SELECT prompt_hmac, phash, subject_id, min(received) AS t FROM choices WHERE phash IS NOT NULL GROUP BY ALL
        )
        SELECT prompt_hmac, phash, begun, t FROM (
            SELECT prompt_hmac, phash, t, min(t) OVER before AS begun, count(*) OVER before AS people FROM once
            WINDOW before AS (PARTITION BY prompt_hmac, phash ORDER BY t RANGE BETWEEN ? PRECEDING AND CURRENT ROW)
        ) WHERE people >= ? ORDER BY prompt_hmac, phash, t
    """
    sql = sql.replace("?", str(HOUR), 1)  # a window's bounds take no parameters
    return {(str(a), str(b)): spans for (a, b), spans in _spans(_asked(choices, sql, subjects), 2)}


def within(spans: Spans, at: int) -> bool:
    return any(first <= at <= last for first, last in spans)


def pick_agreement(choices: Path) -> tuple[float | None, int]:
    """Share of pairs of people shown the same pictures who picked the same one, and the number of such pairs."""
    sql = """
        WITH votes AS (
            SELECT hash(shown) AS shown, hash(subject_id) AS person, arg_max(hash(image), received) AS image
            FROM choices WHERE image IS NOT NULL GROUP BY ALL
        ), picked AS (SELECT shown, image, count(*) AS n FROM votes GROUP BY ALL),
        seen AS (SELECT shown, sum(n * (n - 1)) AS same, sum(n) * (sum(n) - 1) AS every FROM picked GROUP BY shown)
        SELECT sum(same)::BIGINT, sum(every)::BIGINT FROM seen
    """
    same, every = next(_asked(choices, sql))
    return (same / every, every // 2) if every else (None, 0)


def rating_agreement(ratings: Path) -> dict[str, tuple[float | None, int]]:
    """Krippendorff's alpha (ordinal) of each axis, and the number of pictures rated by two people or more."""
    import krippendorff

    found: dict[str, tuple[float | None, int]] = {}
    for axis in AXES:
        sql = f"""
            SELECT {", ".join(f"count(*) FILTER ({axis} = {value})" for value in range(1, 6))} FROM (
                SELECT image, subject_id, any_value({axis}) AS {axis} FROM choices WHERE {axis} IS NOT NULL GROUP BY ALL
            ) GROUP BY image HAVING count(*) > 1
        """
        counts = np.array(list(_asked(ratings, sql)), dtype=np.int64)
        varied = counts.size > 0 and (counts.sum(0) > 0).sum() > 1  # undefined where all ratings are one value
        alpha = krippendorff.alpha(value_counts=counts, level_of_measurement="ordinal") if varied else None
        found[axis] = (None if alpha is None else float(alpha), len(counts))
    return found


def _asked(file: Path, sql: str, *parameters: int) -> Iterator[tuple[Any, ...]]:
    """Rows of an answer about `choices`, the file's rows.

    However many there are: beyond the limit DuckDB goes to the disk, with all but aggregates whose state is text.
    """
    import duckdb

    config = {
        "memory_limit": MEMORY,
        "threads": 1,
        "temp_directory": str(file.parent / "sorting"),
        "preserve_insertion_order": False,
    }
    with duckdb.connect(config=config) as database:
        name = str(file).replace("'", "''")
        database.execute(f"CREATE VIEW choices AS SELECT * FROM read_parquet('{name}')")
        answer = database.execute(sql, parameters)
        while rows := answer.fetchmany(4096):
            yield from rows


def _spans(rows: Iterable[tuple[Any, ...]], keys: int) -> Iterator[tuple[tuple[Any, ...], Spans]]:
    """Merge (key …, first, last) that overlap; rows are ordered by key and last."""
    for key, group in groupby(rows, key=lambda row: row[:keys]):
        spans: Spans = []
        for *_, first, last in group:
            while spans and first <= spans[-1][1]:
                first = min(first, spans.pop()[0])
            spans.append((first, last))
        yield key, spans
