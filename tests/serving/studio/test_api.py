from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving_process import Running
from studio_process import Studio, begin, event, finished, new_id, next_round, studio_of

from vca.provenance.verify import verify


def test_a_whole_dialogue(client: httpx.Client) -> None:
    dialogue_id, first_id = begin(client)
    first = finished(client, first_id)
    assert first["status"] == "done"
    assert sorted(first["presentation"]["slots"]) == sorted(one["candidate_id"] for one in first["candidates"])

    picked = client.post("/v1/events", json=event(first["presentation"], "pick", 0))
    second_id = next_round(client, dialogue_id, first, "make it blue")
    second = finished(client, second_id)
    accepted = client.post("/v1/events", json=event(second["presentation"], "accept", 1))

    assert picked.status_code == accepted.status_code == 201
    tree = client.get(f"/v1/dialogues/{dialogue_id}").json()
    assert (tree["head"], tree["status"]) == (second_id, "accepted")
    assert [one["prompt"] for one in tree["rounds"]] == ["red heart", "blue heart"]
    assert tree["rounds"][1]["parent_candidate_id"] == first["presentation"]["slots"][0]
    assert [one["choice"]["kind"] for one in tree["rounds"]] == ["pick", "accept"]
    digests = {client.get(one["picture"]).content for entry in tree["rounds"] for one in entry["candidates"]}
    assert len(digests) == 8


def test_pictures_are_what_the_generator_made_and_nobody_else_sees_them(client: httpx.Client) -> None:
    _, round_id = begin(client)
    candidate = finished(client, round_id)["candidates"][0]

    shown = client.get(candidate["picture"])
    download = client.get(candidate["picture"], params={"download": "1"})

    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)
    assert download.content == shown.content
    assert download.headers["content-disposition"].startswith("attachment")
    assert "private" in shown.headers["cache-control"]


def test_the_same_ids_again_are_the_same_thing(client: httpx.Client) -> None:
    sent = {"dialogue_id": new_id(), "round_id": new_id(), "prompt": "cat face"}
    answers = [client.post("/v1/dialogues", json=sent) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert client.post("/v1/dialogues", json={**sent, "prompt": "dog face"}).status_code == 409

    seen = finished(client, sent["round_id"])["presentation"]
    picked = event(seen, "pick", 2)
    answers = [client.post("/v1/events", json=picked) for _ in range(3)]
    assert [answer.json()["replayed"] for answer in answers] == [False, True, True]
    assert client.post("/v1/events", json={**picked, "target": [seen["slots"][0]]}).status_code == 409

    asked = {"round_id": new_id(), "parent_round_id": sent["round_id"], "prompt": "cat face"}
    path = f"/v1/dialogues/{sent['dialogue_id']}/rounds"
    assert [client.post(path, json=asked).status_code for _ in range(2)] == [202, 200]
    assert len(client.get(f"/v1/dialogues/{sent['dialogue_id']}").json()["rounds"]) == 2


def test_who_follows_a_round_sees_it_through(client: httpx.Client) -> None:
    _, round_id = begin(client)
    states, ids = [], []
    with client.stream("GET", f"/v1/rounds/{round_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("id: "):
                ids.append(int(line[4:]))
            if line.startswith("data: {") and line != "data: {}":
                states.append(json.loads(line[6:]))

    assert ids == sorted(set(ids))
    assert states[-1]["status"] == "done"
    progress = [state["progress"] for state in states]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert any(one["preview"] for state in states for one in state["candidates"])


def test_branches_and_going_back_delete_nothing(client: httpx.Client) -> None:
    dialogue_id, first_id = begin(client)
    first = finished(client, first_id)
    left = next_round(client, dialogue_id, first, "make it blue")
    finished(client, left)

    assert client.put(f"/v1/dialogues/{dialogue_id}/head", json={"round_id": first_id}).json() == {"head": first_id}
    right = next_round(client, dialogue_id, first, "make it green")
    finished(client, right)

    tree = client.get(f"/v1/dialogues/{dialogue_id}").json()
    assert tree["head"] == right
    assert [one["parent_round_id"] for one in tree["rounds"]] == [None, first_id, first_id]


def test_a_locked_look_starts_from_the_same_noise(client: httpx.Client, studio: Studio) -> None:
    import sqlite3

    dialogue_id, first_id = begin(client)
    first = finished(client, first_id)
    second = next_round(client, dialogue_id, first, "make it blue", locked=True)
    finished(client, second)

    with sqlite3.connect(studio.folder / "store.sqlite") as database:
        parent = first["presentation"]["slots"][0].replace("-", "")
        (seed,) = database.execute("SELECT seed FROM candidate WHERE candidate_id = ?", (parent,)).fetchone()
        rows = database.execute(
            "SELECT seed, strength FROM candidate WHERE round_id = ? ORDER BY idx", (second.replace("-", ""),)
        ).fetchall()
    assert {row[0] for row in rows} == {seed}
    assert [row[1] for row in rows] == pytest.approx([0.42, 0.51, 0.6, 0.69])


def test_a_cancelled_round_stops_and_stays_so(client: httpx.Client) -> None:
    _, round_id = begin(client)
    assert client.post(f"/v1/rounds/{round_id}/cancel").json() == {"status": "cancelled"}
    assert finished(client, round_id)["status"] == "cancelled"
    assert client.post(f"/v1/rounds/{round_id}/cancel").json() == {"status": "cancelled"}
    done = finished(client, begin(client)[1])["round_id"]
    assert client.post(f"/v1/rounds/{done}/cancel").json() == {"status": "done"}


def test_what_is_kept_is_checked(client: httpx.Client) -> None:
    dialogue_id, round_id = begin(client, "woman firefighter, medium-dark skin, twemoji style")
    finished(client, round_id)
    asked = {"parent_round_id": round_id, "critique": "make it a man firefighter", "keep": ["woman firefighter"]}
    answer = client.post(f"/v1/dialogues/{dialogue_id}/refinements", json=asked).json()
    assert answer["before"].startswith("woman")
    if "woman firefighter" not in answer["prompt"]:
        assert "woman firefighter" in answer["warnings"][0]


def test_a_shared_link_shows_pictures_only_until_it_is_revoked(client: httpx.Client, studio: Studio) -> None:
    dialogue_id, round_id = begin(client)
    finished(client, round_id)
    assert client.get(f"/v1/dialogues/{dialogue_id}").json()["share"] is None
    shared = client.post(f"/v1/dialogues/{dialogue_id}/share").json()
    again = client.post(f"/v1/dialogues/{dialogue_id}/share").json()
    assert shared == again
    assert client.get(f"/v1/dialogues/{dialogue_id}").json()["share"] == shared["url"]

    page = client.get(shared["url"])
    assert page.status_code == 200
    assert page.headers["x-robots-tag"].startswith("noindex")
    assert client.get(shared["url"] + "0").status_code == 404

    client.delete(f"/v1/dialogues/{dialogue_id}/share")
    assert client.get(shared["url"]).status_code == 404
    assert client.post(f"/v1/dialogues/{dialogue_id}/share").json()["url"] != shared["url"]


def test_a_shared_link_shows_what_was_chosen(client: httpx.Client) -> None:
    dialogue_id, round_id = begin(client)
    seen = finished(client, round_id)["presentation"]
    link = client.post(f"/v1/dialogues/{dialogue_id}/share").json()["url"]
    for slot in range(4):
        client.post("/v1/events", json=event(seen, "accept", slot))
        page = client.get(link).text
        assert [f"{link}/{picture}" in page for picture in seen["slots"]] == [n == slot for n in range(4)]


def test_consent_is_off_until_it_is_given(generator: Running, tmp_path: Path) -> None:
    with studio_of(tmp_path, generator.url) as studio, studio.client() as client:
        assert client.get("/v1/me").json()["consent"]["train"] is False
        assert client.put("/v1/me/consent", json={"train": True}).json()["consent"]["train"] is True
        assert client.get("/v1/me").json()["consent"]["train"] is True


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_round_outlives_the_studio_that_draws_it(generator: Running, tmp_path: Path, how: str) -> None:
    """Killed in the middle, the same pictures come out as without."""
    with studio_of(tmp_path, generator.url) as studio, studio.client() as client:
        _, round_id = begin(client)
        with client.stream("GET", f"/v1/rounds/{round_id}/events") as stream:
            for line in stream.iter_lines():
                if '"preview": "/v1' in line:
                    break
        getattr(studio, how)()
        studio.start()
        found = finished(client, round_id)
        assert found["status"] == "done"
        drawn = sorted(found["candidates"], key=lambda one: one["idx"])
        pictures = [client.get(one["picture"]).content for one in drawn]
        seeds = _seeds(tmp_path, round_id)

    for data, seed in zip(pictures, seeds, strict=True):
        order = {"prompt": "red heart", "seed": seed, "refine": False}
        _, answer = generator.post("/openai/v1/images/generations", order)
        assert _same(data, answer["data"][0]["b64_json"])


def test_without_a_generator_words_are_kept_and_people_are_told(tmp_path: Path) -> None:
    sets = ("studio.patience_s=2",)
    with studio_of(tmp_path, "http://127.0.0.1:9", *sets) as studio, studio.client() as client:
        dialogue_id, round_id = begin(client)
        found = finished(client, round_id)
        assert (found["status"], "did not answer" in found["message"]) == ("failed", True)
        asked = {"parent_round_id": round_id, "critique": "make it blue"}
        answer = client.post(f"/v1/dialogues/{dialogue_id}/refinements", json=asked)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


def test_what_is_said_of_two_takes_no_pick_back(client: httpx.Client) -> None:
    """The later comparison is known, and the pick is still the round's choice; alone, the comparison is."""
    _, round_id = begin(client)
    seen = finished(client, round_id)["presentation"]
    pair = client.post(f"/v1/rounds/{round_id}/presentations", json={"layout": "pair", "pictures": seen["slots"][:2]})
    picked = event(seen, "pick", 2)

    def choice() -> str:
        kind: str = client.get(f"/v1/rounds/{round_id}").json()["choice"]["kind"]
        return kind

    assert client.post("/v1/events", json=event(pair.json(), "pair", 0, 1)).status_code == 201
    assert choice() == "pair"
    assert client.post("/v1/events", json=picked).status_code == 201
    assert choice() == "pick"
    assert client.post("/v1/events", json=event(pair.json(), "pair", 1, 0)).status_code == 201
    assert choice() == "pick"
    taken_back = event(seen, "retract", supersedes=picked["event_id"])
    assert client.post("/v1/events", json=taken_back).status_code == 201
    assert choice() == "pair"


def test_two_people_asking_at_once_both_get_their_pictures(client: httpx.Client) -> None:
    rounds = [begin(client, prompt)[1] for prompt in ("red heart", "cat face", "blue car")]
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda one=one: found.update({one: finished(client, one)["status"]})) for one in rounds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found.values()) == {"done"}


def _seeds(folder: Path, round_id: str) -> list[int]:
    import sqlite3

    with sqlite3.connect(folder / "store.sqlite") as database:
        statement = "SELECT seed FROM candidate WHERE round_id = ? ORDER BY idx"
        return [row[0] for row in database.execute(statement, (round_id.replace("-", ""),))]


def _same(data: bytes, encoded: str) -> bool:
    import base64

    import numpy as np

    one, other = (
        np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(int) for raw in (data, base64.b64decode(encoded))
    )
    return bool(abs(one - other).max() <= 1)  # another batch rounds differently


def test_signed_pictures_verify(policy_folder: Path, tmp_path: Path) -> None:
    """What people download tells who made it."""
    from serving_process import serving

    from vca.provenance.keys import Keys, create

    create(tmp_path / "keys")
    keys = Keys.load(tmp_path / "keys")
    arguments = (f"--policy={policy_folder}", f"--set=serving.keys={tmp_path}/keys")
    with (
        serving("generator", *arguments, log=tmp_path / "log") as signing,
        studio_of(tmp_path, signing.url) as studio,
        studio.client() as client,
    ):
        _, round_id = begin(client)
        one = finished(client, round_id)["candidates"][0]
        data = client.get(one["picture"], params={"download": "1"}).content
    found = verify(data, watermark_key=keys.watermark_key, trust_anchors=keys.trust_anchors)
    assert found.genuine
    assert not found.tampered
