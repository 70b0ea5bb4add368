"""The generator as its callers see it, over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving_process import Running

GENERATIONS, EDITS = "/openai/v1/images/generations", "/openai/v1/images/edits"
TOLERANCE = 1  # of 255 levels: another batch rounds differently in a float's last bits


def pixels(data: str | bytes) -> np.ndarray:
    raw = base64.b64decode(data) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(int)


def draw(generator: Running, **order: Any) -> dict[str, Any]:
    status, answer = generator.post(GENERATIONS, order)
    assert status == 200, answer
    return dict(answer)


@pytest.mark.parametrize("path", ["/v2/health/live", "/nowhere", "/v2/models/nobody", "/openai/v1/models"])
def test_every_response_names_request_and_release(generator: Running, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", generator.http, timeout=60)
    connection.request("GET", path, headers={"X-Request-Id": "mine"})
    answer = connection.getresponse()
    assert answer.headers.get_all("x-request-id") == ["mine"]
    assert answer.headers["x-vca-release"].startswith("policy-")


def test_an_answer_says_what_was_drawn_by_whom_and_from_which_noise(generator: Running) -> None:
    status, body = generator.post(GENERATIONS, {"prompt": "red heart", "seed": 7, "n": 2}, X_Request_Id="my-id:1")
    assert status == 200
    assert [picture["seed"] for picture in body["data"]] == [7, 8]
    assert body["request_id"] == "my-id:1"
    assert body["release"].startswith("policy-")
    assert body["size"] == "64x64"
    assert pixels(body["data"][0]["b64_json"]).shape == (64, 64, 3)


def test_the_same_order_gives_the_same_picture_alone_and_in_any_company(generator: Running) -> None:
    alone = pixels(draw(generator, prompt="red heart", seed=7)["data"][0]["b64_json"])
    orders = [
        {"prompt": f"{colour} circle", "seed": seed, "steps": 3 + seed % 5, "guidance": 1.0 + seed % 3}
        for seed, colour in enumerate(["blue", "green", "red", "orange"] * 3)
    ]
    with ThreadPoolExecutor(13) as callers:
        crowd = [callers.submit(draw, generator, **order) for order in orders]
        mine = callers.submit(draw, generator, prompt="red heart", seed=7)
        others = [pixels(one.result()["data"][0]["b64_json"]) for one in crowd]
    assert np.abs(pixels(mine.result()["data"][0]["b64_json"]) - alone).max() <= TOLERANCE
    again = pixels(draw(generator, **orders[5])["data"][0]["b64_json"])
    assert np.abs(others[5] - again).max() <= TOLERANCE
    assert min(np.abs(one - alone).mean() for one in others) > 3


def test_a_dialogue_goes_on_by_its_id_and_equals_going_on_from_the_picture(generator: Running) -> None:
    first = draw(generator, prompt="red heart", seed=7, n=2)
    status, second = generator.post(
        EDITS, {"prompt": "make it blue", "dialogue_id": first["dialogue_id"], "pick": 1, "seed": 3}
    )
    assert status == 200
    assert (second["round"], second["dialogue_id"]) == (2, first["dialogue_id"])
    assert second["data"][0]["revised_prompt"] == "blue heart"
    status, stateless = generator.post(
        EDITS,
        {
            "prompt": "make it blue",
            "image": first["data"][1]["b64_json"],
            "previous_prompt": "red heart",
            "seed": 3,
        },
    )
    assert status == 200
    assert stateless["data"][0]["revised_prompt"] == "blue heart"
    # through the picture the latent is the autoencoder's guess, not the one that was drawn
    one, other = (pixels(body["data"][0]["b64_json"]) for body in (second, stateless))
    assert np.abs(one - other).mean() < 12
    status, third = generator.post(EDITS, {"prompt": "make it green", "dialogue_id": first["dialogue_id"]})
    assert (status, third["round"], third["data"][0]["revised_prompt"]) == (200, 3, "green heart")
    status, again = generator.post(
        EDITS, {"prompt": "make it blue", "dialogue_id": first["dialogue_id"], "round": 2, "pick": 1, "seed": 3}
    )
    assert np.abs(pixels(again["data"][0]["b64_json"]) - one).max() <= TOLERANCE


def test_what_is_undone_goes_back_to_the_first_words(generator: Running) -> None:
    dialogue = draw(generator, prompt="red heart", steps=1)["dialogue_id"]
    said = []
    for feedback in ("make it blue", "undo that"):
        body = generator.post(EDITS, {"prompt": feedback, "dialogue_id": dialogue, "steps": 1})[1]
        said.append(body["data"][0]["revised_prompt"])
    assert said == ["blue heart", "red heart"]


def test_an_id_of_one_s_own_choice_begins_no_dialogue(generator: Running) -> None:
    """Who could choose one could choose one that others guess."""
    order = {"prompt": "red heart", "dialogue_id": "mine", "steps": 1}
    assert generator.post(GENERATIONS, order)[1]["error"]["param"] == "dialogue_id"
    assert generator.post(EDITS, order)[0] == 404
    assert generator.post(EDITS, {**order, "round": 1})[0] == 404
    status, body = generator.post("/v1/models/vca-generator:predict", {"instances": [{**order, "round": 1}]})
    assert status == 404, body
    dialogue = draw(generator, prompt="red heart", steps=1)["dialogue_id"]
    status, body = generator.post(EDITS, {**order, "dialogue_id": dialogue, "round": 1})
    assert (status, body["error"]["param"]) == (400, "round")


def test_a_form_carries_numbers_as_text(generator: Running) -> None:
    picture = base64.b64decode(draw(generator, prompt="red heart", steps=1)["data"][0]["b64_json"])
    fields = {"prompt": "make it blue", "steps": "2", "seed": "4", "guidance": "2", "refine": "false"}
    fields |= {"output_format": "jpeg", "output_compression": "80"}
    answer = httpx.post(generator.url + EDITS, data=fields, files={"image": ("x.png", picture)}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["seed"] == 4
    assert Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))).format == "JPEG"
    fields["steps"] = "two"
    answer = httpx.post(generator.url + EDITS, data=fields, files={"image": ("x.png", picture)}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steps")


def test_without_refinement_the_words_are_drawn_as_they_are(generator: Running) -> None:
    first = draw(generator, prompt="red heart", seed=7)
    status, second = generator.post(
        EDITS, {"prompt": "make it blue", "dialogue_id": first["dialogue_id"], "refine": False}
    )
    assert (status, second["data"][0]["revised_prompt"]) == (200, "make it blue")


def test_strength_says_how_much_is_drawn_again(generator: Running) -> None:
    first = draw(generator, prompt="red heart", seed=7)
    image, before = first["data"][0]["b64_json"], pixels(first["data"][0]["b64_json"])

    def moved(strength: float) -> float:
        order = {"prompt": "red heart", "image": image, "strength": strength, "seed": 9, "refine": False}
        status, answer = generator.post(EDITS, order)
        assert status == 200
        return float(np.abs(pixels(answer["data"][0]["b64_json"]) - before).mean())

    assert moved(0.15) < moved(1.0)


def test_words_that_do_not_fit_are_named(generator: Running) -> None:
    body = draw(generator, prompt="red heart, " + ", ".join(f"thing number {n}" for n in range(60)))
    assert body["truncated"]
    assert body["data"][0]["revised_prompt"].startswith("red heart, thing number 0")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(generator: Running, kind: str) -> None:
    data = base64.b64decode(draw(generator, prompt="red heart", output_format=kind)["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(data)).format == kind.upper()


def test_a_stream_shows_previews_and_then_the_picture(generator: Running) -> None:
    order = {"prompt": "red heart", "seed": 7, "stream": True, "partial_images": 2}
    status, content = generator.call(GENERATIONS, json.dumps(order).encode(), content_type="application/json")
    assert status == 200
    events = [json.loads(line[6:]) for line in content.decode().splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]
    assert [event.get("partial_image_index") for event in events[:2]] == [0, 1]
    whole = pixels(draw(generator, prompt="red heart", seed=7)["data"][0]["b64_json"])
    distance = [np.abs(pixels(event["b64_json"]) - whole).mean() for event in events]
    assert distance[0] > distance[1] > distance[2]
    assert np.abs(pixels(events[2]["b64_json"]) - whole).max() <= TOLERANCE


def infer(**inputs: tuple[str, list[Any]]) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [len(values)], "data": values}
            for name, (datatype, values) in inputs.items()
        ]
    }


def test_v2_and_v1_draw_what_openai_s_api_draws(generator: Running) -> None:
    whole = pixels(draw(generator, prompt="red heart", seed=7)["data"][0]["b64_json"])
    document = infer(prompt=("BYTES", ["red heart", "blue heart"]), seed=("INT64", [7]))
    for version in ("", f"/versions/{json.loads(generator.get('/v2/models/vca-generator')[1])['versions'][0]}"):
        status, body = generator.post(f"/v2/models/vca-generator{version}/infer", document)
        assert status == 200, body
        found = {output["name"]: output["data"] for output in body["outputs"]}
        assert np.abs(pixels(found["image"][0]) - whole).max() <= TOLERANCE
        assert found["seed"] == [7, 7]
    status, body = generator.post(
        "/v1/models/vca-generator:predict", {"instances": [{"prompt": "red heart", "seed": 7}]}
    )
    assert status == 200
    assert np.abs(pixels(body["predictions"][0]["images"][0]["b64"]) - whole).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("order", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "   "}, 400, "prompt"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": "x" * 5000}, 400, "prompt"),
        ({"prompt": "x", "n": 0}, 400, "n"),
        ({"prompt": "x", "n": 17}, 400, "n"),
        ({"prompt": "x", "n": 1.5}, 400, "n"),
        ({"prompt": "x", "n": True}, 400, "n"),
        ({"prompt": "x", "n": 10**30}, 400, "n"),
        ({"prompt": "x", "steps": 101}, 400, "steps"),
        ({"prompt": "x", "steps": -1}, 400, "steps"),
        ({"prompt": "x", "guidance": 1e308}, 400, "guidance"),
        ({"prompt": "x", "guidance": 0.5}, 400, "guidance"),
        ({"prompt": "x", "strength": 0}, 400, "strength"),
        ({"prompt": "x", "seed": -1}, 400, "seed"),
        ({"prompt": "x", "seed": 2**60}, 400, "seed"),
        ({"prompt": "x", "size": "1024x1024"}, 400, "size"),
        ({"prompt": "x", "response_format": "url"}, 400, "response_format"),
        ({"prompt": "x", "output_format": "gif"}, 400, "output_format"),
        ({"prompt": "x", "model": "dall-e-3"}, 404, "model"),
        ({"prompt": "x", "stream": True, "n": 2}, 400, "stream"),
        ({"prompt": "x", "partial_images": 4}, 400, "partial_images"),
        ({"prompt": "x", "best_of": 2}, 400, "best_of"),
        ({"prompt": "x", "image": "QUJD"}, 400, "image"),
        ({"prompt": "x", "colour": "red"}, 400, "colour"),
        ({"prompt": "x", "round": 2}, 400, "round"),
    ],
)
def test_what_cannot_be_is_refused_in_openai_s_shape(
    generator: Running, order: dict[str, Any], status: int, param: str
) -> None:
    found, body = generator.post(GENERATIONS, order)
    assert found == status, body
    assert body["error"]["param"] == param
    assert param in body["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_know(generator: Running, number: str) -> None:
    body = f'{{"prompt": "x", "guidance": {number}}}'.encode()
    status, content = generator.call(GENERATIONS, body, content_type="application/json")
    assert status == 400
    assert "error" in json.loads(content)


def test_unknown_dialogues_and_rounds_are_not_found(generator: Running) -> None:
    status, body = generator.post(EDITS, {"prompt": "make it blue", "dialogue_id": "nobody's"})
    assert (status, body["error"]["code"]) == (404, "unknown_dialogue")
    first = draw(generator, prompt="red heart")
    status, body = generator.post(EDITS, {"prompt": "x", "dialogue_id": first["dialogue_id"], "round": 5})
    assert (status, body["error"]["param"]) == (400, "round")
    status, body = generator.post(EDITS, {"prompt": "x", "dialogue_id": first["dialogue_id"], "pick": 5})
    assert (status, body["error"]["param"]) == (400, "pick")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not within a minute")


def test_who_hangs_up_frees_the_device(generator: Running) -> None:
    """A caller that leaves in the middle of a long order: the device lets go of it before its next step."""

    def total(start: str) -> float:
        lines = generator.get("/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(start))

    left, steps = 'vca_requests_total{api="openai",model="vca-generator",outcome="left"}', "vca_batch_size_sum"
    had_left, before = total(left), total(steps)  # the server has served other tests
    connection = http.client.HTTPConnection("127.0.0.1", generator.http, timeout=60)
    order = {"prompt": "red heart", "n": 16, "steps": 100}
    connection.request("POST", GENERATIONS, json.dumps(order), {"Content-Type": "application/json"})
    wait_for(lambda: total(steps) >= before + 32)
    connection.close()
    wait_for(lambda: total(left) > had_left)
    done = total(steps)
    assert done < before + 1600
    draw(generator, prompt="red heart", steps=2)
    assert total(steps) <= done + 16 + 2  # the step that the device was at when it was told
    assert total(left) == had_left + 1
