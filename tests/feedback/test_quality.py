from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from vca.feedback import quality
from vca.feedback.judging import Cap, Judge, usable
from vca.feedback.quality import CHOICE_ROWS, HOUR, MINUTE, RATING_ROWS
from vca.feedback.sheets import batch_of
from vca.feedback.snapshot_files import TIME

SECOND = 10**6


def choices(tmp_path: Path, rows: list[tuple[Any, ...]], schema: pa.Schema = CHOICE_ROWS) -> Path:
    file = tmp_path / "choices.parquet"
    with pa.parquet.ParquetWriter(file, schema) as writer:
        writer.write_batch(batch_of(rows, schema))
    return file


def pick(person: str, at: int, *, prompt: str = "p", image: str = "i", phash: str = "0f", shown: str = "set") -> Any:
    return (person, at, prompt, shown, image, phash)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=4).filter(any))
def test_slots_against_scipy_and_their_weights_even_picks_out(picks: list[int]) -> None:
    found = quality.slots(picks)
    expected = scipy.stats.chisquare(picks)
    assert found.chi2 == pytest.approx(expected.statistic, abs=1e-5)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-5)
    smoothed = [one + 1 for one in picks]
    weighted = [one * weight for one, weight in zip(smoothed, found.weights, strict=True)]
    assert weighted == pytest.approx([sum(smoothed) / len(picks)] * len(picks), rel=1e-4)


def test_the_slot_test_has_the_power_that_theory_gives_it() -> None:
    """610 picks, one slot at 30 % instead of 25 %: noncentral chi-square, 3 degrees of freedom."""
    shares = (0.30, *[0.70 / 3] * 3)
    noncentral = 610 * sum((share - 0.25) ** 2 / 0.25 for share in shares)
    power = scipy.stats.ncx2.sf(scipy.stats.chi2.isf(0.05, 3), 3, noncentral)
    draw = random.Random(0)
    alarms = 0
    for _ in range(400):
        falls = draw.choices(range(4), weights=shares, k=610)
        alarms += quality.slots([falls.count(slot) for slot in range(4)]).p < 0.05
    assert alarms / 400 == pytest.approx(power, abs=0.07)


def test_no_picks_are_no_alarm() -> None:
    assert quality.slots([0, 0, 0, 0]).p == 1.0
    assert quality.slots([5]).p == 1.0


def test_bursts_are_told_with_their_span(tmp_path: Path) -> None:
    rows = [pick("fast", n * SECOND) for n in range(30)] + [pick("fast", 2 * HOUR)]
    rows += [pick("slow", n * 7 * SECOND) for n in range(30)]
    random.Random(1).shuffle(rows)
    file = choices(tmp_path, rows)
    assert quality.bursts(file, events=10) == {"fast": [(0, 29 * SECOND)]}
    assert quality.bursts(file, events=31) == {}
    edge = choices(tmp_path, [pick("edge", n * MINUTE // 9) for n in range(10)])
    assert quality.bursts(edge, events=10) == {}  # the tenth came a whole minute after the first
    assert quality.bursts(edge, events=9) == {"edge": [(0, MINUTE)]}


def test_a_crowd_on_one_picture_within_an_hour_is_a_cluster(tmp_path: Path) -> None:
    rows = [pick(f"sybil {n}", n * MINUTE) for n in range(12)]
    rows += [pick(f"slow {n}", n * HOUR // 4, phash="aa") for n in range(12)]
    rows += [pick("one person", n, phash="bb") for n in range(50)]
    rows += [pick(f"other prompt {n}", n, prompt=f"p{n}", phash="cc") for n in range(50)]
    file = choices(tmp_path, rows)
    assert quality.clusters(file, subjects=10) == {("p", "0f"): [(0, 11 * MINUTE)]}
    assert quality.clusters(file, subjects=13) == {}


def test_pick_agreement(tmp_path: Path) -> None:
    rows = [pick(f"a{n}", n, image="x") for n in range(3)] + [pick("b", 4, image="y")]
    rows += [pick("a0", 9, image="x"), pick("alone", 3, shown="another set")]
    rows += [(f"tie {n}", n, "p", "set", None, None) for n in range(5)]
    share, compared = quality.pick_agreement(choices(tmp_path, rows))
    assert (share, compared) == (pytest.approx(3 / 6), 6)
    assert quality.pick_agreement(choices(tmp_path, rows[:1])) == (None, 0)


def test_rating_agreement_is_krippendorffs(tmp_path: Path) -> None:
    rows = [(f"image {n}", f"person {m}", 1 + n % 5, None, 1 + (n + m) % 5) for n in range(20) for m in range(3)]
    found = quality.rating_agreement(choices(tmp_path, rows, RATING_ROWS))
    assert found["alignment"] == (pytest.approx(1.0), 20)
    assert found["coherence"] == (None, 0)
    alpha, units = found["style"]
    assert units == 20
    assert alpha is not None
    assert alpha < 0.6


def test_agreement_over_more_choices_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MEMORY", "48MB")
    draw = random.Random(0)
    texts = [f"{draw.getrandbits(256):064x}" for _ in range(200_000)]
    rows = [pick(text[:32], n, prompt=text, image=text, phash=text[:16], shown=text) for n, text in enumerate(texts)]
    assert quality.pick_agreement(choices(tmp_path, rows)) == (None, 0)


# Judging


def batch(rows: list[tuple[str, str, str | None, str, int, str | None]]) -> pa.RecordBatch:
    schema = pa.schema(
        [
            ("subject_id", pa.string()),
            ("prompt_hmac", pa.string()),
            ("phash_chosen", pa.string()),
            ("source_event_id", pa.string()),
            ("event_timestamp", pa.int64()),
            ("excluded_reason", pa.string()),
        ]
    )
    places = [pa.field("event_timestamp", TIME) if one.name == "event_timestamp" else one for one in schema]
    return batch_of(rows, schema).cast(pa.schema(places))


def test_each_suspicion_has_its_reason_and_earlier_reasons_stay() -> None:
    judge = Judge(untrusted={"u"}, bursts={"b": [(10, 20)]}, clusters={("p", "0f"): [(5, 9)]})
    rows = [
        ("u", "q", None, "e1", 0, None),
        ("b", "q", None, "e2", 20, None),
        ("b", "q", None, "e3", 21, None),
        ("c", "p", "0f", "e4", 5, None),
        ("c", "p", "0f", "e5", 10, None),
        ("c", "p", None, "e6", 5, None),
        ("u", "q", None, "e7", 0, "unsafe"),
        ("c", "q", "0f", "e8", 5, None),
    ]
    found = judge.judged(batch(rows))["excluded_reason"].to_pylist()
    assert found == ["low_trust", "burst", None, "cluster", None, None, "unsafe", None]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 10))
def test_nobody_has_more_than_the_cap_and_who_has_less_keeps_all(choices: list[int], floor: int, seed: int) -> None:
    rows = [
        (f"person {who}", "p", None, f"{seed} {who} {event}", 0, None)
        for who, events in enumerate(choices)
        for event in range(events)
        for _ in range(3)
    ]
    every = batch(rows)
    before = usable([every])
    cap = Cap(before, share=0.1, floor=floor)
    assert cap.most == max(floor, int(0.1 * len(rows)))
    after = usable([cap.judged(part) for part in (every.slice(0, 50), every.slice(50))])
    for person, number in before.items():
        if number <= cap.most:
            assert after[person] == number
        else:
            assert cap.most - 2 <= after[person] <= cap.most


def test_ten_thousand_picks_of_one_person_are_capped_over_all_of_their_time() -> None:
    """Case 17."""
    one = [("one", "p", None, f"e{event}", event, None) for event in range(10_000) for _ in range(3)]
    others = [(f"o{who}", "p", None, f"o{who} {event}", 0, None) for who in range(100) for event in range(30)]
    every = batch([*one, *others])
    cap = Cap(usable([every]), share=0.02, floor=300)
    judged = cap.judged(every)
    after = usable([judged])
    assert cap.most == 660
    assert 658 <= after.pop("one") <= 660
    assert set(after.values()) == {30}
    kept = [t for t, why in zip(range(30_000), judged["excluded_reason"].to_pylist(), strict=False) if why is None]
    first = sum(place < 15_000 for place in kept)
    assert 230 <= first <= 430  # about half of them early
