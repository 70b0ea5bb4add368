from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from stores import begun, drawn, new_id

from vca.feedback import dialogues, queue
from vca.feedback.dialogues import Round, RoundRequest, Words
from vca.feedback.errors import Conflict, NotFound
from vca.feedback.queue import ATTEMPTS, LEASE_S, Drawn
from vca.feedback.store import Person, Store, now

READY = Drawn(state="ready", safety="pass", image_sha256="0" * 64)
HIDDEN = Drawn(state="blocked", safety="fail", reason="hidden")
FAULT = Drawn(state="failed", safety="unknown", reason="generator_fault")


def state(store: Store, person: Person, dialogue_id: str) -> Round:
    return dialogues.tree(store, person, dialogue_id).rounds[-1]


def test_the_longest_waiting_round_comes_first_and_to_one_worker_only(store: Store) -> None:
    ann = store.person("ann")
    asked = [begun(store, ann)[1] for _ in range(6)]

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda n: queue.claim(store, worker=f"w{n}"), range(8)))

    taken = [job.round_id for job in jobs if job is not None]
    assert sorted(taken) == sorted(asked)
    assert queue.claim(store, worker="late") is None


def test_order_and_position(store: Store) -> None:
    ann = store.person("ann")
    asked = [begun(store, ann)[1] for _ in range(3)]
    assert [queue.position(store, one) for one in asked] == [0, 1, 2]
    first = queue.claim(store, worker="w")
    assert first is not None
    assert first.round_id == asked[0]
    assert [queue.position(store, one) for one in asked] == [0, 0, 1]


def test_a_dead_workers_round_is_drawn_once_more_with_the_same_seeds_and_then_given_up(store: Store) -> None:
    ann = store.person("ann")
    dialogue_id, _ = begun(store, ann)
    seeds, moment = [], now()
    for attempt in range(ATTEMPTS):
        job = queue.claim(store, worker=f"w{attempt}", at=moment)
        assert job is not None
        seeds.append([one[2] for one in job.waiting])
        assert queue.claim(store, worker="other", at=moment + timedelta(seconds=LEASE_S - 1)) is None
        moment += timedelta(seconds=LEASE_S + 1)

    assert queue.claim(store, worker="last", at=moment) is None
    assert seeds == [seeds[0]] * ATTEMPTS
    assert (state(store, ann, dialogue_id).status, state(store, ann, dialogue_id).reason) == ("failed", "crashed")


def test_who_comes_back_from_the_dead_writes_nothing(store: Store) -> None:
    ann = store.person("ann")
    begun(store, ann)
    old = queue.claim(store, worker="old")
    assert old is not None
    new = queue.claim(store, worker="new", at=now() + timedelta(seconds=LEASE_S + 1))
    assert new is not None

    assert not queue.renew(store, round_id=old.round_id, worker="old")
    with pytest.raises(Conflict):
        queue.put(store, round_id=old.round_id, worker="old", candidate_id=old.waiting[0][0], drawn=READY)
    queue.put(store, round_id=new.round_id, worker="new", candidate_id=new.waiting[0][0], drawn=READY)


def test_a_second_worker_draws_only_what_is_missing(store: Store) -> None:
    ann = store.person("ann")
    begun(store, ann)
    old = queue.claim(store, worker="old")
    assert old is not None
    queue.put(store, round_id=old.round_id, worker="old", candidate_id=old.waiting[1][0], drawn=READY)

    new = queue.claim(store, worker="new", at=now() + timedelta(seconds=LEASE_S + 1))

    assert new is not None
    assert new.waiting == (old.waiting[0], *old.waiting[2:])


def test_a_round_given_back_waits_as_if_it_had_not_been_begun(store: Store) -> None:
    ann = store.person("ann")
    begun(store, ann)
    for _ in range(ATTEMPTS + 2):
        job = queue.claim(store, worker="w")
        assert job is not None
        queue.give_back(store, round_id=job.round_id, worker="w")


@pytest.mark.parametrize(
    ("drawn_as", "status", "reason"),
    [
        ([READY, HIDDEN, FAULT, READY], "done", None),
        ([HIDDEN] * 4, "blocked", "hidden"),
        ([HIDDEN, FAULT, HIDDEN, FAULT], "failed", "generator_fault"),
    ],
)
def test_what_a_round_comes_to(store: Store, drawn_as: list[Drawn], status: str, reason: str | None) -> None:
    ann = store.person("ann")
    dialogue_id, _ = begun(store, ann)
    job = queue.claim(store, worker="w")
    assert job is not None
    for (candidate_id, *_), drawn_one in zip(job.waiting, drawn_as, strict=True):
        assert state(store, ann, dialogue_id).status == "running"
        queue.put(store, round_id=job.round_id, worker="w", candidate_id=candidate_id, drawn=drawn_one)
    found = state(store, ann, dialogue_id)
    assert (found.status, found.reason) == (status, reason)
    assert found.completed_at is not None


def test_cancelling(store: Store) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    _, waiting = begun(store, ann)
    assert queue.cancel(store, ann, round_id=waiting) == "cancelled"
    assert queue.claim(store, worker="w") is None

    _, running = begun(store, ann)
    queue.claim(store, worker="w")
    with pytest.raises(NotFound):
        queue.cancel(store, bob, round_id=running)
    assert queue.cancel(store, ann, round_id=running) == "cancelled"
    assert not queue.renew(store, round_id=running, worker="w")

    _, finished = begun(store, ann)
    drawn(store)
    assert queue.cancel(store, ann, round_id=finished) == "done"
    with pytest.raises(NotFound):
        queue.cancel(store, ann, round_id=new_id())


def test_an_edit_knows_what_it_goes_on_from(store: Store) -> None:
    ann = store.person("ann")
    dialogue_id, first = begun(store, ann, "red heart")
    drawn(store)
    picture = state(store, ann, dialogue_id).candidates[1]
    request = RoundRequest(
        round_id=new_id(),
        words=Words(prompt="blue heart"),
        parent_round_id=first,
        parent_candidate_id=picture.candidate_id,
        strength=0.5,
    )
    dialogues.ask(store, ann, dialogue_id=dialogue_id, request=request)

    job = queue.claim(store, worker="w")

    assert job is not None
    assert (job.words.prompt, job.previous_prompt) == ("blue heart", "red heart")
    assert job.image_sha256 == picture.image_sha256
