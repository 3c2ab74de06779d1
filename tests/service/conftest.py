"""What several tests of the service start from: its app on fakes, and its page in a browser on a stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import page_server
import pytest
from evaluation import chromium
from fastapi.testclient import TestClient
from page_driver import PROGRAM, Page, shown
from service_app import Made, made_app


@pytest.fixture
def made() -> Made:
    return made_app()


@pytest.fixture
def client(made: Made) -> Iterator[TestClient]:
    with TestClient(made.app) as client:
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.browser(str(PROGRAM), tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def operators() -> Iterator[page_server.Service]:
    with page_server.serving() as service:
        yield service


@pytest.fixture
def page(browser: chromium.Browser, operators: page_server.Service) -> Iterator[Page]:
    """The page for an operator."""
    with shown(browser, operators) as opened:
        yield opened
