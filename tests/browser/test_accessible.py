"""axe-core finds nothing serious: roles, names, contrast, order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from explanations import make_explanation
from pages import film, settle, spotted

from tam_fast.explanation.page import page_of, page_text
from tam_fast.render.page import page as write_page

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
pytestmark = pytest.mark.long


def _pages() -> dict[str, str]:
    one, two = make_explanation(shapes=((4, 6),)), make_explanation(shapes=((4, 6),), seed=1)
    chat = make_explanation(shapes=((4, 6),))
    chat.messages = [{"role": "user", "content": "c0 c1"}, {"role": "assistant", "content": "Yes."}]
    chat.messages += [{"role": "user", "content": "c0c1c2"}]
    rows = [(number, number) for number in range(len(one.words))]
    return {
        "one": page_text(one),
        "several": page_text(spotted([(4, 6)] * 3, [1, -1], sources=[0, 1, 2])),
        "video": page_text(film()),
        "chat": page_text(chat),
        "compare": write_page(page_of([one, two], titles=["one", "two"], rows=rows)),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "several", "video", "chat", "compare"])
def test_no_serious_violation(visit: Callable[..., Any], name: str, scheme: str) -> None:
    page = visit(_pages()[name], color_scheme=scheme, reduced_motion="reduce")
    for state in ("nothing", "word"):
        if state == "word":
            page.locator(".word").nth(1).click()
            page.locator("h1").hover()
            settle(page)
        found = axe.Axe().run(page).response["violations"]
        serious = [
            f"{one['id']}: {node['html'][:120]} {node.get('failureSummary', '')[:160]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]
        assert serious == [], state


def test_motion_only_where_it_is_wanted(visit: Callable[..., Any]) -> None:
    text = page_text(film())
    durations = {
        motion: visit(text, reduced_motion=motion)
        .locator(".thumb img")
        .first.evaluate("thumb => getComputedStyle(thumb).transitionDuration")
        for motion in ("reduce", "no-preference")
    }
    assert durations["reduce"] == "0s"
    assert durations["no-preference"] != "0s"
