"""From a pointer's movement to the painted page: ``python -m bench.page [--tokens T] [--cells SIDE] [--samples N]``.

A page of 2,000 tokens over 64 x 64 cells is opened in the system's Chromium (without a GPU). The pointer is put on one
word after the other, and the time is taken in the page from the event to the frame after the one that draws: what a
reader waits for. Each map is checked before anything is timed. The numbers are of this machine and its load.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench import ROOT
from tam_fast.explanation.page import page_text

sys.path.insert(0, str(ROOT / "tests"))

from explanations import make_explanation

_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]

# The event is the page's own; the second frame's callback comes when the first is painted.
_MEASURE = """
(unit) => new Promise((done) => {
  const word = document.querySelector(`.u[data-u="${unit}"]`);
  const start = performance.now();
  word.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
  requestAnimationFrame(() => {
    const drawn = performance.now();
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done([drawn - start, performance.now() - start]);
    requestAnimationFrame(() => channel.port2.postMessage(0));
  });
})
"""


def make(tokens: int, side: int) -> Any:
    """An explanation of many words over many cells."""
    chance = torch.Generator().manual_seed(0)
    maps = torch.rand(tokens, side * side, generator=chance) ** 4
    noise = np.random.default_rng(0).integers(0, 256, (27, 36, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1440, 1080), Image.Resampling.BICUBIC)
    words = [f" word{number}" for number in range(tokens)]
    made = make_explanation(words, ((side, side),), maps=maps, images=[image], prompt=64)
    # Most of a context is worth little: so it is with models, and all that is worth something is coloured.
    made.maps.relevance.pow_(8)
    return made


def check(page: Any, explanation: Any, unit: int) -> None:
    """The hottest cell of the page's map is that of the explanation."""
    row, column = page.evaluate(
        "() => { const s = page.views[0].column.hottest(page.views[0].values); return [s.row, s.column]; }"
    )
    peak = explanation.peak(unit)
    value = float(explanation.maps.grid(unit, 0)[row, column])
    if value < peak.value * (1 - 1 / 255):
        raise SystemExit(f"word {unit}: expected the hottest cell {peak.row}, {peak.column}, got {row}, {column}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--cells", type=int, default=64, help="cells of a side")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    explanation = make(given.tokens, given.cells)
    start = time.perf_counter()
    text = page_text(explanation)
    print(f"written in {time.perf_counter() - start:.2f} s, {len(text.encode()) / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=given.browser, args=_FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        page.goto(file.as_uri())
        print(f"opened in {time.perf_counter() - start:.2f} s")
        chance = np.random.default_rng(0)
        times: dict[str, list[list[float]]] = {"smooth": [], "exact": []}
        for _ in range(given.samples):
            for cells, found in times.items():
                page.locator("select[name=cells]").select_option(cells)
                unit = int(chance.integers(given.tokens))
                found.append(page.evaluate(_MEASURE, unit))
                check(page, explanation, unit)
        for cells, found in times.items():
            for name, values in zip(("drawn", "painted"), zip(*found, strict=True), strict=True):
                low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
                print(f"{cells}: {name} after {middle:.1f} ms ({low:.1f} to {high:.1f})")
        browser.close()


if __name__ == "__main__":
    main()
