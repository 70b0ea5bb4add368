"""How reliable everybody's choices are, in figures and in a small table. Reads the whole store; trains nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vca.feedback import quality
from vca.feedback.quality import ALARM_P, Probed, Tally
from vca.feedback.reading import Reader, moment, uncollected
from vca.feedback.rules import CHOICES, settle, trust
from vca.feedback.snapshot_files import Slots
from vca.feedback.store import Store
from vca.progress import Progress

ALARM_UNKNOWN = 0.05  # share of checks for abuse that could not be made
ALARM_FLIPS = 0.3  # share of repeats answered otherwise; one label in five at random makes about .35
FLIPS_OF = 20  # repeats, before that says anything


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """value: None where it can't be told. n: from how many comparisons (pairs of people, pictures rated twice)."""

    value: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """flips: share of repeated rounds in which the person chose another picture. untrusted, in_bursts: people.

    clusters: pairs of a prompt and a picture. gates: events by the worst verdict of their checks for abuse.
    """

    as_of: datetime
    people: int
    dialogues: int
    choices: int
    slots: tuple[Slots, ...]
    flips: Agreement
    picks: Agreement
    ratings: dict[str, Agreement]
    untrusted: int
    in_bursts: int
    clusters: int
    gates: dict[str, int]

    @property
    def alarms(self) -> list[str]:
        """What an operator has to look at, a line each."""
        found = [
            f"where a picture stands decides: among {one.n} pictures slot {place + 1} has {one.picks[place]} of "
            f"{sum(one.picks)} picks (p = {one.p:.1g})"
            for one in self.slots
            if one.p < ALARM_P and (place := max(range(one.n), key=one.picks.__getitem__)) >= 0
        ]
        if self.flips.value is not None and self.flips.n >= FLIPS_OF and self.flips.value > ALARM_FLIPS:
            found.append(f"people answer {100 * self.flips.value:.0f} % of repeated rounds otherwise the second time")
        if self.in_bursts:
            found.append(f"{self.in_bursts} people chose faster than people can")
        if self.clusters:
            found.append(f"{self.clusters} times a crowd chose one picture of one prompt within an hour")
        if self.untrusted:
            found.append(f"{self.untrusted} people answer repeated rounds at random, or their trust was lowered")
        checked = sum(self.gates.values())
        if self.gates.get("unknown", 0) > ALARM_UNKNOWN * checked:
            found.append(f"checks for abuse failed to answer for {self.gates['unknown']} of {checked} events")
        return found

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        slots = [one.model_dump(mode="json") for one in self.slots]
        return {**asdict(self), "as_of": self.as_of.isoformat(), "slots": slots, "alarms": self.alarms}

    def lines(self) -> Iterator[str]:
        """For people to read."""
        yield f"{'as of':24}{self.as_of:%Y-%m-%d %H:%M:%S} UTC"
        yield f"{'people':24}{self.people:,}"
        yield f"{'dialogues':24}{self.dialogues:,}"
        yield f"{'choices':24}{self.choices:,}"
        for one in self.slots:
            shares = "  ".join(f"{100 * picks / max(sum(one.picks), 1):.1f} %" for picks in one.picks)
            yield f"{f'slots of {one.n}':24}{shares}   (even: p = {one.p:.2g})"
        yield f"{'chose otherwise again':24}{_share(self.flips)}"
        yield f"{'people agree on picks':24}{_share(self.picks)}"
        for axis, found in self.ratings.items():
            told = "too few to tell" if found.value is None else f"alpha {found.value:.2f}"
            yield f"{f'ratings, {axis}':24}{told}   ({found.n:,} pictures)"
        yield f"{'checks for abuse':24}" + (", ".join(f"{name} {n:,}" for name, n in self.gates.items()) or "none")
        yield from (f"! {alarm}" for alarm in self.alarms)


def _share(found: Agreement) -> str:
    return f"{'too few to tell' if found.value is None else f'{100 * found.value:.1f} %'}   ({found.n:,} comparisons)"


def measure(store: Store, *, progress: Progress, as_of: datetime | None = None) -> Reliability:
    """Raises SettingsError for an `as_of` that is too late, StoreDown."""
    at, rules = moment(as_of), store.settings.rules
    with tempfile.TemporaryDirectory() as scratch, uncollected():
        choices, ratings = Path(scratch, "choices.parquet"), Path(scratch, "ratings.parquet")
        tally = Tally(choices, ratings=ratings)
        with store.database.reading() as connection:
            reader = Reader(store, connection, as_of=at)
            total = reader.total()
            with progress.task("feedback: dialogues", total, "dialogues") as task:
                for batch in reader.batches():
                    tally.add([(told, settle(told)) for told in batch])
                    task.advance(len(batch))
        tally.close()
        probed = tally.probed.values()
        agreed, asked = sum(one.agreed for one in probed), sum(one.asked for one in probed)
        share, compared = quality.pick_agreement(choices)
        return Reliability(
            as_of=at,
            people=len(reader.people),
            dialogues=total,
            choices=sum(tally.kinds[kind] for kind in CHOICES),
            slots=tally.slots(),
            flips=Agreement(value=1 - agreed / asked if asked else None, n=asked),
            picks=Agreement(value=share, n=compared),
            ratings={
                axis: Agreement(value=alpha, n=n) for axis, (alpha, n) in quality.rating_agreement(ratings).items()
            },
            untrusted=sum(
                trust(*tally.probed.get(name, Probed()), stored=who.trust) < rules.min_trust
                for name, who in reader.people.items()
            ),
            in_bursts=len(quality.bursts(choices, events=rules.burst_events)),
            clusters=len(quality.clusters(choices, subjects=rules.cluster_subjects)),
            gates=dict(sorted(tally.gates.items())),
        )
