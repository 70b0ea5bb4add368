"""A real Chromium on the studio, and a watch over what its pages do behind people's backs."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Response, sync_playwright
from studio_process import Studio

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
# What a page may never do is said on the console, where Python hears it.
WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective}`));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, not a download."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here; install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visitor(browser: Browser, studio: Studio, **options: Any) -> Iterator[Page]:
    """Somebody's page. At the end: no request went elsewhere, no rule of the policy was broken, no script failed."""
    wrong: list[str] = []
    options = {
        "viewport": {"width": 1280, "height": 800},
        "reduced_motion": "reduce",
        "base_url": studio.url,
        **options,
    }
    context = browser.new_context(**options)
    context.set_default_timeout(30_000)

    def watch(page: Page) -> None:
        page.on("request", lambda sent: None if _near(sent.url) else wrong.append(f"asked {sent.url}"))
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda said: wrong.append(said.text) if "CSP" in said.text else None)
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)

    context.on("page", watch)
    context.add_init_script(WATCH)
    try:
        yield context.new_page()
    finally:
        context.close()
    assert wrong == []


def _near(url: str) -> bool:
    return urlsplit(url).hostname == "127.0.0.1" or url.startswith(("blob:", "about:"))


def begin(page: Page, prompt: str = "red heart") -> str:
    """Begin a dialogue on the start page; its round's id, once the round's page is there."""
    page.goto("/")
    page.get_by_label("Say it in your own words").fill(prompt)
    page.get_by_role("button", name="Draw four pictures").click()
    page.wait_for_url("**/d/*/r/*")
    return shown(page)


def shown(page: Page) -> str:
    """The id of the round that the address names."""
    return page.url.rsplit("/", 1)[1]


def dialogue(page: Page) -> str:
    return page.url.split("/d/")[1].split("/")[0]


def view(page: Page, name: str) -> Locator:
    """Wait until the page shows this: wait, stopped, choose, several, refine, diff or end."""
    main = page.locator(f'main[data-view="{name}"]')
    main.wait_for()
    return main


def pictures(page: Page) -> Locator:
    return page.locator("#grid input")


def next_round(page: Page, go: Any) -> str:
    """Do `go`, which has another round drawn; its id, once its pictures are there."""
    before = page.url
    go()
    page.wait_for_url(lambda url: url != before and "/r/" in url)
    view(page, "choose")
    return shown(page)


def standing(client: httpx.Client, round_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/rounds/{round_id}").json()
    return found


def violations(page: Page) -> list[str]:
    """axe's, in light and dark."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        for one in Axe().run(page).response["violations"]:
            where = [node["target"] for node in one["nodes"]]
            found.append(f"{scheme}: {one['id']} ({one['impact']}): {where}")
    return found


def weighed(responses: list[Response]) -> tuple[int, int]:
    """How many answers, and how many bytes in their bodies; pictures of the generator left out."""
    counted = [one for one in responses if "/v1/" not in one.url]
    return len(counted), sum(len(one.body()) for one in counted if one.status == 200)


def events_of(studio: Studio, dialogue_id: str) -> list[str]:
    """The kinds of all events of a dialogue, in order."""
    with sqlite3.connect(studio.folder / "store.sqlite") as database:
        statement = "SELECT kind FROM feedback_event WHERE dialogue_id = ? ORDER BY received_at, event_id"
        return [row[0] for row in database.execute(statement, (dialogue_id.replace("-", ""),))]


def expect_events(studio: Studio, page: Page, *kinds: str) -> None:
    """They are written down; the page needs not wait for that, the test does."""
    end = time.monotonic() + 20
    while (found := events_of(studio, dialogue(page))) != list(kinds) and time.monotonic() < end:
        time.sleep(0.05)
    assert found == list(kinds)
