"""What every page of the studio keeps to, in a real Chromium."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Response, expect
from serving_process import Running
from studio_browser import (
    begin,
    dialogue,
    expect_events,
    next_round,
    pictures,
    standing,
    view,
    violations,
    visitor,
    weighed,
)
from studio_process import Studio, studio_of


def test_what_is_hidden_says_so_and_can_be_reported(page: Page, studio: Studio) -> None:
    begin(page, "blood and gore")
    view(page, "stopped")
    expect(page.get_by_role("heading", name="Hidden by the safety filter")).to_be_visible()
    expect(page.locator(".tile .why").first).to_contain_text("Hidden by the safety filter")
    assert page.locator(".tile img").count() == 0
    assert violations(page) == []
    page.get_by_role("button", name="Report").click()
    page.get_by_role("radio", name="A picture is hidden that should not be").check()
    page.get_by_label("In your words").fill("it is a film poster")
    page.get_by_role("button", name="Send report").click()
    expect_events(studio, page, "report")
    page.get_by_role("button", name="Other words").click()
    page.get_by_label("Change the words").fill("cat face")
    next_round(page, lambda: page.get_by_role("button", name="Draw", exact=True).click())


def test_asked_again_politely(browser: Browser, generator: Running, tmp_path: Path) -> None:
    """The same pictures once more; the answer is no choice of the round's."""
    with studio_of(tmp_path, generator.url, "feedback.probe_share=1") as own, visitor(browser, own) as page:
        round_id = begin(page)
        view(page, "choose")
        page.keyboard.press("1")
        page.get_by_role("heading", name="One more look?").wait_for()
        assert violations(page) == []
        picked = pictures(page).nth(0).get_attribute("value")
        page.get_by_role("button", name="Picture 1 of this row").click()
        expect(page.locator(".probe")).to_have_count(0)
        expect_events(own, page, "pick", "pick")
        with own.client() as client:
            assert standing(client, round_id)["choice"]["target"] == [picked]
            assert standing(client, round_id)["probe"] is None


# What every page keeps to


def test_axe_finds_nothing_in_any_state(page: Page, browser: Browser, studio: Studio) -> None:
    found: dict[str, list[str]] = {}

    def check(state: str, there: Page = page) -> None:
        if wrong := violations(there):
            found[state] = wrong

    page.goto("/")
    check("start")
    page.get_by_role("button", name="Delete my data").click()
    check("delete my data")
    page.route(re.compile("/v1/rounds/.*/events"), lambda route: route.abort())
    page.route(re.compile("/v1/rounds/[^/]*$"), lambda route: route.abort())
    begin(page, "woman firefighter, medium-dark skin")
    view(page, "wait")
    page.get_by_text("The connection is away").wait_for()
    check("drawing, away")
    page.unroute_all()
    view(page, "choose")
    check("choose")
    page.keyboard.press("?")
    check("help")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Several are good").click()
    page.keyboard.press("1")
    check("several")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    view(page, "refine")
    page.get_by_role("group", name="medium-dark skin").get_by_role("button", name="Change").click()
    page.get_by_role("group", name="Quality").get_by_role("button", name="Happy").click()
    page.locator("#critique").fill("better")
    page.keyboard.press("Control+Enter")
    page.locator("#ask").wait_for()
    check("asked back")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#compare-stage img").first.wait_for()
    check("side by side")
    page.get_by_role("radio", name="Slider").check()
    page.locator(".over").wait_for()
    check("slider")
    page.keyboard.press("Escape")
    page.locator("#critique").fill("make it a man firefighter. better")
    page.keyboard.press("Control+Enter")
    view(page, "diff")
    check("difference")
    next_round(page, lambda: page.keyboard.press("Control+Enter"))
    page.get_by_role("button", name="None fits").click()
    check("none fits")
    page.get_by_role("button", name="Report", exact=True).click()
    check("report")
    page.keyboard.press("Escape")
    page.locator(".tile").nth(0).click()
    page.get_by_role("button", name="This is it").click()
    view(page, "end")
    check("end")
    page.get_by_role("button", name="Share").last.click()
    page.get_by_role("button", name="Make a link").click()
    page.locator("#share-copy").wait_for()
    check("share")
    link = page.locator("#share-url").input_value()
    with visitor(browser, studio) as guest:
        guest.goto(link)
        expect(guest.locator(".mine img")).to_have_count(2)
        check("shared page", guest)
        page.get_by_role("button", name="Stop sharing").click()
        page.locator("#share-on").wait_for()
        guest.reload()
        expect(guest.get_by_role("heading", name="There is nothing here.")).to_be_visible()
        check("error page", guest)
    assert found == {}


def test_first_use_is_light_and_quick(browser: Browser, studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    with visitor(browser, studio) as page:
        begin(page)
        view(page, "choose")
        address = page.url
    for name, path in (("start", "/"), ("round", address)):
        with visitor(browser, studio) as page:
            answers: list[Response] = []
            page.on("response", lambda answer, to=answers: to.append(answer))
            started = time.monotonic()
            page.goto(path, wait_until="commit")
            page.locator("#theme[aria-pressed]").wait_for()
            usable = time.monotonic() - started
            page.wait_for_load_state("networkidle")
            number, size = weighed(answers)
        told.append(f"{name}: {number} requests, {size / 1000:.1f} kB, usable after {usable:.2f} s")
        assert number <= 12
        assert size <= 100_000
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(told) + "\n")


HOSTILE = (
    '<img src=x onerror="window.executed=1"><script>window.executed=1</script>',
    "</script><script>window.executed=1</script>{{ 7*7 }} ${7*7} <!-- ",
    "\u202eevil\u202c עברית <svg onload=window.executed=1> \u0007",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(page: Page, text: str) -> None:
    begin(page, text)
    page.locator('main:not([data-view="wait"])').wait_for()
    visible = " ".join(text.split())

    def as_it_was(selector: str) -> None:
        shown_text = page.locator(selector).first.text_content() or ""
        assert visible in " ".join(shown_text.split())
        assert page.evaluate("window.executed") is None

    as_it_was("#prompt")
    if page.locator('main[data-view="choose"]').count():
        page.keyboard.press("1")
        page.locator("#critique").fill(f"make it blue {text}")
        page.reload()
        page.locator("#next").click()
        page.locator("#ask:visible, main[data-view=diff]").first.wait_for()
        if page.locator("main[data-view=diff]").count() == 0:
            page.get_by_role("button", name="Write the words myself").click()
        page.locator("#words").fill(text)
        next_round(page, lambda: page.get_by_role("button", name="Draw", exact=True).click())
        as_it_was("#prompt")
    page.goto("/")
    assert page.evaluate("window.executed") is None


def test_consent_and_goodbye(browser: Browser, generator: Running, tmp_path: Path) -> None:
    """Off until it is switched on; and everything goes when somebody says so twice."""
    with studio_of(tmp_path, generator.url) as own, visitor(browser, own) as page, own.client() as client:
        page.goto("/")
        assert violations(page) == []
        consent = page.get_by_role("switch", name="Help the picture maker learn")
        expect(consent).not_to_be_checked()
        consent.check(force=True)
        expect(page.locator("#consent-said")).to_contain_text("On.")
        assert client.get("/v1/me").json()["consent"]["train"] is True
        page.reload()
        expect(consent).to_be_checked()

        begin(page)
        view(page, "choose")
        page.keyboard.press("1")
        expect_events(own, page, "pick")
        dialogue_id = dialogue(page)
        page.goto("/")
        expect(page.locator(".mine img")).to_have_count(1)
        page.get_by_role("button", name="Delete my data").click()
        page.get_by_role("button", name="Delete for good").click()
        expect(page.locator(".mine img")).to_have_count(1)  # not without the tick
        page.get_by_label("Yes, delete everything of mine").check()
        page.get_by_role("button", name="Delete for good").click()
        expect(page.locator(".mine")).to_have_count(0)
        assert client.get(f"/v1/dialogues/{dialogue_id}").status_code == 404
        assert client.get("/v1/me").json()["consent"]["train"] is False


def test_a_chosen_theme_stays(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark colours").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark != light
    assert page.get_by_role("button", name="Dark colours").get_attribute("aria-pressed") == "true"
