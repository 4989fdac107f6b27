"""Pages in a real browser: Playwright with a Chromium that the system has."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pages import settle
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-color-profile=srgb"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    named = os.environ.get("TAM_FAST_TEST_BROWSER")
    path = named or next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: {', '.join(_NAMES)} or TAM_FAST_TEST_BROWSER")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a page's HTML; whatever it asks for, says or breaks at is an error in the end."""
    contexts: list[Any] = []
    noted: list[str] = []

    def go(text: str, *, width: int = 1440, height: int = 900, **options: Any) -> Any:
        file = tmp_path / f"page-{len(contexts)}.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()

        def asked(request: Any) -> None:
            if not request.url.startswith("data:") and request.url != file.as_uri():
                noted.append(f"asked for {request.url}")

        page.on("request", asked)
        page.on("console", lambda message: noted.append(f"said {message.text}"))
        page.on("pageerror", lambda error: noted.append(f"broke at {error}"))
        page.on("dialog", lambda dialog: (noted.append(f"opened a dialog {dialog.message}"), dialog.dismiss()))
        page.goto(file.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert noted == []


@pytest.fixture
def pixels() -> Callable[[Any], npt.NDArray[np.int16]]:
    """Take a picture of an element: (H, W, 3), once what was asked for is drawn."""

    def take(element: Any) -> npt.NDArray[np.int16]:
        settle(element.page)
        with Image.open(io.BytesIO(element.screenshot())) as shot:
            return np.asarray(shot.convert("RGB"), dtype=np.int16)

    return take
