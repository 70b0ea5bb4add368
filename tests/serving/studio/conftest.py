"""A studio, and the generator of the folder above."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page
from serving_process import Running
from studio_browser import chromium, visitor
from studio_process import Studio, studio_of

QUICK = {"test_identity", "test_limits"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def studio(generator: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """One for all tests that leave it as it is."""
    with studio_of(tmp_path_factory.mktemp("studio"), generator.url) as running:
        yield running


@pytest.fixture
def client(studio: Studio) -> Iterator[httpx.Client]:
    with studio.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, studio: Studio) -> Iterator[Page]:
    with visitor(browser, studio) as page:
        yield page
