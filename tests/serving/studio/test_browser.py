"""Whole dialogues in a real Chromium: by mouse, by keyboard alone, on a phone, without JavaScript."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect
from studio_browser import (
    PHONE,
    begin,
    dialogue,
    expect_events,
    next_round,
    pictures,
    shown,
    standing,
    view,
    visitor,
)
from studio_process import Studio

# Whole dialogues


def test_a_dialogue_by_mouse(page: Page, studio: Studio, client: httpx.Client) -> None:
    page.goto("/")
    page.get_by_role("button", name="red heart").click()
    page.get_by_role("button", name="Draw four pictures").click()
    page.wait_for_url("**/r/*")
    view(page, "choose")
    first = shown(page)
    slots = standing(client, first)["presentation"]["slots"]
    assert [one.get_attribute("value") for one in pictures(page).all()] == slots

    page.locator(".tile").nth(1).click()
    view(page, "refine")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("radio", name="Slider").check()
    page.get_by_role("button", name="Picture 1 is better").click()
    expect(pictures(page).nth(0)).to_be_checked()

    page.get_by_label("What should change?").fill("make it blue. better")
    page.get_by_role("group", name="heart").get_by_role("button", name="Keep").click()
    page.get_by_role("group", name="Style").get_by_role("button", name="Not yet").click()
    page.get_by_role("radio", name="a little").check()
    page.get_by_role("switch", name="Keep the look").check()
    page.get_by_role("button", name="Next round").click()
    view(page, "diff")
    expect(page.locator("#diff del")).to_contain_text("red")
    expect(page.locator("#diff ins")).to_contain_text("blue")
    expect(page.locator("#told")).to_contain_text("better")
    page.get_by_label("Change the words").fill("blue heart, shiny")
    expect(page.locator("#diff ins").last).to_contain_text("shiny")
    second = next_round(page, lambda: page.get_by_role("button", name="Draw", exact=True).click())

    made = standing(client, second)
    assert (made["prompt"], made["prompt_refined"][:10], made["prompt_edited"]) == (
        "blue heart, shiny",
        "blue heart",
        True,
    )
    assert (made["strength"], made["locked"], made["axes"]) == (0.35, True, {"style": False})
    assert (made["parent_round_id"], made["parent_candidate_id"]) == (first, slots[0])

    page.get_by_role("button", name="Several are good").click()
    page.locator(".tile").nth(0).click()
    page.locator(".tile").nth(2).click()
    page.get_by_role("button", name="These are good").click()
    view(page, "refine")
    third = next_round(page, lambda: page.get_by_role("button", name="More like this").click())
    page.get_by_role("button", name="None fits").click()
    fourth = next_round(page, lambda: page.get_by_role("button", name="Four new ones").click())
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url(f"**/{third}")
    assert client.get(f"/v1/dialogues/{dialogue(page)}").json()["head"] == third
    page.get_by_role("button", name="Redo").click()
    page.wait_for_url(f"**/{fourth}")

    page.locator(f'#strip a[data-round="{first}"]').click()  # another branch, from another picture of the first round
    page.wait_for_url(f"**/{first}")
    page.locator(".tile").nth(3).click()
    fifth = next_round(page, lambda: page.get_by_role("button", name="More like this").click())
    branch = standing(client, fifth)
    assert (branch["parent_round_id"], branch["parent_candidate_id"]) == (first, slots[3])
    assert page.locator("#strip li.on").count() == 2
    assert page.locator("#strip a").count() == 5

    page.locator(".tile").nth(2).click()
    page.get_by_role("button", name="This is it").click()
    view(page, "end")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    kinds = ["pick", "pair", "pick", "critique", "tie_good", "all_bad", "regenerate", "pick", "pick", "accept"]
    expect_events(studio, page, *kinds, "download")
    assert standing(client, fifth)["choice"]["kind"] == "accept"

    page.reload()
    view(page, "end")
    page.get_by_role("button", name="Keep working on it").click()
    view(page, "refine")
    expect(pictures(page).nth(2)).to_be_checked()


def test_a_dialogue_by_keyboard_alone(page: Page, client: httpx.Client) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.locator(f"{selector}:focus").count():
                return
        raise AssertionError(f"the Tab key never comes to {selector}")

    page.goto("/")
    page.keyboard.type("red heart")
    page.keyboard.press("Enter")
    page.wait_for_url("**/r/*")
    view(page, "choose")
    first = shown(page)

    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="How it works")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    view(page, "refine")
    page.keyboard.press("ArrowDown")  # moves, and picks nothing
    expect(pictures(page).nth(3)).to_be_focused()
    expect(pictures(page).nth(1)).to_be_checked()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    expect(pictures(page).nth(2)).to_be_checked()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(pictures(page).nth(0)).to_be_checked()
    assert shown(page) == first

    page.keyboard.press("c")
    expect(page.locator("#compare-stage img")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    tab_to("#critique")
    page.keyboard.type("make it blue")
    page.keyboard.press("Control+Enter")
    view(page, "diff")
    page.keyboard.press("Escape")
    view(page, "refine")
    page.keyboard.press("Control+Enter")
    view(page, "diff")
    second = next_round(page, lambda: page.keyboard.press("Control+Enter"))
    assert standing(client, second)["prompt"] == "blue heart"

    page.keyboard.press("Control+z")
    page.wait_for_url(f"**/{first}")
    page.keyboard.press("Control+Shift+z")
    page.wait_for_url(f"**/{second}")
    page.keyboard.press("0")
    view(page, "refine")
    page.keyboard.press("Tab")  # out of the text, where numbers are letters
    page.keyboard.press("4")
    expect(pictures(page).nth(3)).to_be_checked()
    tab_to("#accept")
    page.keyboard.press("Enter")
    view(page, "end")
    expect(page.locator("#end-title")).to_be_focused()


def test_a_dialogue_on_a_phone(browser: Browser, studio: Studio) -> None:
    """Pictures come first; nothing is too wide, also at 320 px, and everything can be hit with a thumb."""
    with visitor(browser, studio, **PHONE) as page:

        def fits() -> None:
            for width in (320, 390):
                page.set_viewport_size({"width": width, "height": 844})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                targets = page.locator(
                    "button:not(.sr), a.primary, a.second, a.tool, summary, .segments label, .switch, .tick"
                )
                for one in targets.all():
                    box = one.bounding_box()
                    if box is not None and one.is_visible():
                        assert min(box["width"], box["height"]) >= 44, one.evaluate(
                            "one => one.outerHTML.slice(0, 200)"
                        )

        page.goto("/")
        fits()
        begin(page, "woman firefighter, medium-dark skin")
        view(page, "choose")
        fits()
        for tile in page.locator(".tile .frame").all():
            box = tile.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= 844
        page.locator(".tile").nth(0).tap()
        view(page, "refine")
        fits()
        page.get_by_role("button", name="Compare", exact=True).tap()
        page.get_by_role("button", name="Picture 1 is better").wait_for()
        fits()
        page.get_by_role("button", name="Close").tap()
        page.locator("#critique").fill("make it a man firefighter")
        page.get_by_role("button", name="Next round").tap()
        view(page, "diff")
        fits()
        next_round(page, lambda: page.get_by_role("button", name="Draw", exact=True).tap())
        page.locator(".tile").nth(1).tap()
        page.get_by_role("button", name="This is it").tap()
        view(page, "end")
        fits()


def test_a_dialogue_without_javascript(browser: Browser, studio: Studio, client: httpx.Client) -> None:
    with visitor(browser, studio, java_script_enabled=False) as page:

        def looked_again() -> None:
            end = time.monotonic() + 60
            while page.locator("#grid input:enabled").count() < 4 and time.monotonic() < end:
                page.reload()

        first = begin(page)
        looked_again()
        assert page.locator("#theme").is_hidden()
        pictures(page).nth(2).check(force=True)
        page.get_by_role("button", name="Pick the marked one").click()
        assert standing(client, first)["choice"]["kind"] == "pick"
        page.locator("#critique").fill("make it blue")
        page.get_by_role("button", name="Next round").click()
        looked_again()
        second = standing(client, shown(page))
        assert (second["prompt"], second["parent_round_id"]) == ("blue heart", first)
        page.get_by_role("button", name="Undo").click()
        assert shown(page) == first
        page.locator("#strip a").nth(1).click()
        pictures(page).nth(0).check(force=True)
        page.get_by_role("button", name="This is it").click()
        expect(page.get_by_role("heading", name="There it is.")).to_be_visible()
