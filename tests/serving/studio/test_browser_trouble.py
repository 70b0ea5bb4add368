"""Trouble on the way, in a real Chromium: reloads, cut connections, a second tab, a studio that goes and comes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, Route, expect
from serving_process import Running
from studio_browser import (
    begin,
    dialogue,
    events_of,
    next_round,
    pictures,
    shown,
    standing,
    view,
    visitor,
)
from studio_process import Studio, studio_of

# Trouble on the way


def test_a_reload_in_the_middle_loses_nothing(page: Page, client: httpx.Client) -> None:
    begin(page)
    for _ in range(3):
        page.reload()
    view(page, "choose")
    assert len(client.get(f"/v1/dialogues/{dialogue(page)}").json()["rounds"]) == 1

    page.keyboard.press("3")
    page.locator("#critique").fill("make it blue")
    page.get_by_role("radio", name="a lot").check()
    page.reload()
    expect(page.locator("#critique")).to_have_value("make it blue")
    expect(page.get_by_role("radio", name="a lot")).to_be_checked()
    expect(pictures(page).nth(2)).to_be_checked()
    page.get_by_role("button", name="Next round").click()
    view(page, "diff")
    page.locator("#words").fill("blue heart, big")
    page.reload()
    view(page, "diff")
    expect(page.locator("#words")).to_have_value("blue heart, big")


def test_an_answer_that_got_lost_draws_nothing_twice(page: Page, client: httpx.Client) -> None:
    """The round is asked for again after a reload, by the same words: it is the same round."""
    begin(page)
    view(page, "choose")
    page.keyboard.press("1")
    asked: list[str] = []

    def lose(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or "")["round_id"])
        route.fetch()
        route.abort()

    page.route("**/rounds", lose)
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#next")).to_have_text("Starting …")
    expect(page.locator("#next")).to_have_attribute("aria-busy", "true")
    while not asked:
        page.wait_for_timeout(50)
    page.reload()
    page.unroute("**/rounds")
    page.locator("#next").click()
    page.wait_for_url(f"**/{asked[0]}")
    assert set(asked) == {shown(page)}
    assert len(client.get(f"/v1/dialogues/{dialogue(page)}").json()["rounds"]) == 2


def test_progress_that_is_cut_five_times_comes_through(page: Page, client: httpx.Client) -> None:
    cuts = 0

    def cut(route: Route) -> None:
        nonlocal cuts
        if cuts == 5:
            return route.continue_()
        cuts += 1
        state = {**standing(client, route.request.url.split("/")[-2]), "status": "running", "progress": cuts / 10}
        body = f"event: round\nid: {cuts}\ndata: {json.dumps(state)}\n\n"
        return route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route(re.compile("/v1/rounds/.*/events"), cut)
    begin(page)
    view(page, "choose")
    assert cuts == 5


def test_without_server_sent_events_it_asks(page: Page) -> None:
    page.route(re.compile("/v1/rounds/.*/events"), lambda route: route.abort())
    with page.expect_request(re.compile(r"/v1/rounds/[^/]*$")):
        begin(page)
    view(page, "choose")


def test_a_studio_that_goes_and_comes_loses_no_choice(browser: Browser, generator: Running, tmp_path: Path) -> None:
    with studio_of(tmp_path, generator.url) as own, visitor(browser, own) as page:
        round_id = begin(page)
        view(page, "choose")
        own.kill()
        page.keyboard.press("2")
        view(page, "refine")
        expect(page.locator("#saving")).to_contain_text("Not saved yet")
        page.locator("#critique").fill("make it blue")
        own.start()
        expect(page.locator("#saving")).to_be_empty()
        page.reload()
        expect(pictures(page).nth(1)).to_be_checked()
        expect(page.locator("#critique")).to_have_value("make it blue")
        with own.client() as client:
            assert standing(client, round_id)["choice"]["kind"] == "pick"
        assert events_of(own, dialogue(page)) == ["pick"]


def test_an_event_whose_answer_got_lost_counts_once(page: Page, studio: Studio) -> None:
    begin(page)
    view(page, "choose")
    lost = 0

    def lose(route: Route) -> None:
        nonlocal lost
        if lost == 2:
            return route.continue_()
        lost += 1
        route.fetch()
        return route.abort()

    page.route("**/v1/events", lose)
    page.keyboard.press("1")
    expect(page.locator("#saving")).to_contain_text("Not saved yet")
    page.reload()
    expect(page.locator("#saving")).to_be_empty()
    view(page, "refine")
    assert lost == 2
    assert events_of(studio, dialogue(page)) == ["pick"]


def test_a_second_tab_follows_the_first(page: Page) -> None:
    begin(page)
    view(page, "choose")
    other = page.context.new_page()
    other.goto(page.url)
    view(other, "choose")
    page.locator(".tile").nth(3).click()
    view(other, "refine")
    expect(pictures(other).nth(3)).to_be_checked()
    next_round(page, lambda: page.get_by_role("button", name="More like this").click())
    expect(other.locator("#strip a")).to_have_count(2)


def test_drawing_can_be_stopped_and_begun_again(page: Page, client: httpx.Client) -> None:
    page.route(re.compile("/v1/rounds/.*/events"), lambda route: route.abort())
    page.goto("/")
    for _ in range(5):  # it may be done before the button is pressed
        round_id = begin(page)
        page.locator("#cancel").click()
        page.locator('main:not([data-view="wait"])').wait_for()
        if standing(client, round_id)["status"] == "cancelled":
            break
    assert standing(client, round_id)["status"] == "cancelled"
    if page.locator("#again").is_visible():
        page.unroute(re.compile("/v1/rounds/.*/events"))
        next_round(page, lambda: page.get_by_role("button", name="Draw again").click())
