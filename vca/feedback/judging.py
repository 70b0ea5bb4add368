"""Reasons to leave a pair out that only everybody's choices together show: trust, bursts, clusters, the cap per person.

Works on batches of columns: most batches hold nobody under suspicion and pass as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from vca.data.splits import unit
from vca.feedback.quality import Spans, within
from vca.feedback.rules import Reason

COLUMNS = ("subject_id", "prompt_hmac", "phash_chosen", "source_event_id", "event_timestamp", "excluded_reason")


class Judge:
    """untrusted: people. bursts, clusters: as `vca.feedback.quality` finds them."""

    def __init__(
        self, *, untrusted: set[str], bursts: Mapping[str, Spans], clusters: Mapping[tuple[str, str], Spans]
    ) -> None:
        self.untrusted, self.bursts, self.clusters = untrusted, bursts, clusters
        self._people = pa.array(sorted(untrusted | bursts.keys()), pa.string())
        self._prompts = pa.array(sorted({prompt for prompt, _ in clusters}), pa.string())

    @property
    def suspects(self) -> bool:
        """Whether anything is left out at all."""
        return len(self._people) + len(self._prompts) > 0

    def judged(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its reasons; rows that have one keep it. Needs `COLUMNS`."""
        suspect = pc.or_(
            pc.is_in(batch["subject_id"], self._people), pc.is_in(batch["prompt_hmac"], self._prompts)
        ).to_pylist()
        if not any(suspect):
            return batch
        reasons = batch["excluded_reason"].to_pylist()
        times = batch["event_timestamp"].cast(pa.int64()).to_pylist()
        people, prompts, hashes = (batch[name].to_pylist() for name in ("subject_id", "prompt_hmac", "phash_chosen"))
        for row, under in enumerate(suspect):
            if under and reasons[row] is None:
                reasons[row] = self._reason(people[row], times[row], prompts[row], hashes[row])
        return with_reasons(batch, reasons)

    def _reason(self, person: str, at: int, prompt: str, phash: str | None) -> Reason | None:
        if person in self.untrusted:
            return "low_trust"
        if within(self.bursts.get(person, []), at):
            return "burst"
        if phash is not None and within(self.clusters.get((prompt, phash), []), at):
            return "cluster"
        return None


class Cap:
    """Lets through `most` rows of each person, drawn evenly from all; `usable` says how many each of them has.

    free: subjects that are no persons, for whom there is no limit.
    """

    def __init__(self, usable: Counter[str], *, share: float, floor: int, free: Collection[str] = ()) -> None:
        self.most = max(floor, int(share * usable.total()))
        self._left = {person: rows for person, rows in usable.items() if rows > self.most and person not in free}
        self._room = dict.fromkeys(self._left, self.most)
        self._people = pa.array(sorted(self._left), pa.string())
        self._last: dict[str, tuple[str, bool]] = {}

    def judged(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the rest's reason. Needs all batches, in order, with all other reasons."""
        over = pc.is_in(batch["subject_id"], self._people).to_pylist()
        if not any(over):
            return batch
        reasons = batch["excluded_reason"].to_pylist()
        people, events = batch["subject_id"].to_pylist(), batch["source_event_id"].to_pylist()
        for row, concerned in enumerate(over):
            if concerned and reasons[row] is None and not self._kept(people[row], events[row]):
                reasons[row] = "subject_cap"
        return with_reasons(batch, reasons)

    def _kept(self, person: str, event: str) -> bool:
        """Selection sampling (Knuth, vol. 2, algorithm 3.4.2 S), the lot being the event's hash; whole choices."""
        room, left = self._room[person], self._left[person]
        last, kept = self._last.get(person, ("", False))
        if event != last:
            kept = unit(event, salt="cap") * left < room
            self._last[person] = event, kept
        self._left[person] = left - 1
        if kept and room:
            self._room[person] = room - 1
            return True
        return False


def usable(batches: Iterable[pa.RecordBatch]) -> Counter[str]:
    """Rows without a reason, by person."""
    found: Counter[str] = Counter()
    for batch in batches:
        fine = batch["subject_id"].filter(pc.is_null(batch["excluded_reason"]))
        for count in pc.value_counts(fine).to_pylist():
            found[count["values"]] += count["counts"]
    return found


def with_reasons(batch: pa.RecordBatch, reasons: list[Reason | None]) -> pa.RecordBatch:
    place = batch.schema.get_field_index("excluded_reason")
    return batch.set_column(place, "excluded_reason", pa.array(reasons, pa.string()))
