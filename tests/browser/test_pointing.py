"""Pointing at words: hover, pin, keys, spans, pieces, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from explanations import make_explanation
from pages import film, settle, spotted

from tam_fast.explanation.page import page_of, page_text
from tam_fast.render.page import page as write_page

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.long
Visit = Callable[..., Any]


@pytest.fixture
def page(visit: Visit) -> Any:
    """ "A red circle, a well-made circle and the end.": 13 tokens, of which "cir" and "cle" are one word."""
    return visit(page_text(make_explanation(shapes=((4, 6),))))


def on(page: Any) -> list[str]:
    settle(page)
    return page.locator(".u.on").all_inner_texts()


def pinned(page: Any) -> list[str]:
    settle(page)
    return page.locator('.u[aria-pressed="true"]').all_inner_texts()


def word(page: Any, text: str, nth: int = 0) -> Any:
    return page.locator(".word").filter(has_text=text).nth(nth)


def test_hover_shows_and_leaving_hides(page: Any) -> None:
    assert on(page) == []
    word(page, "red").hover()
    assert on(page) == ["red"]
    assert page.locator(".about .word").inner_text() == "red"
    assert page.locator(".panes canvas").is_visible()
    page.locator("h1").hover()
    assert on(page) == []
    assert page.locator(".about").inner_text() == "No word is chosen."
    assert not page.locator(".panes canvas").is_visible()


def test_click_pins_and_hover_previews(page: Any) -> None:
    word(page, "red").click()
    page.locator("h1").hover()
    assert on(page) == pinned(page) == ["red"]
    word(page, "end").hover()
    assert (on(page), pinned(page)) == (["end"], ["red"])
    page.locator("h1").hover()
    assert on(page) == ["red"]
    word(page, "red").click()
    page.locator("h1").hover()
    assert on(page) == pinned(page) == []


def test_shift_click_joins_words(page: Any) -> None:
    word(page, "red").click()
    word(page, "well-made").click(modifiers=["Shift"])
    page.locator("h1").hover()
    assert pinned(page) == ["red", "circle", "a", "well-made"]
    assert page.locator(".about .word").inner_text() == "red circle, a well-made"
    # Towards the other side the first word stays.
    word(page, "A").click(modifiers=["Shift"])
    assert pinned(page) == ["A", "red"]
    page.keyboard.press("Escape")
    page.locator("h1").hover()
    assert on(page) == pinned(page) == []


def test_keys(page: Any) -> None:
    page.keyboard.press("ArrowRight")
    assert on(page) == ["A"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert (on(page), pinned(page)) == (["circle"], [])
    page.keyboard.press("Enter")
    assert pinned(page) == ["circle"]
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert on(page) == pinned(page) == ["circle", "a", "well-made"]
    page.keyboard.press("End")
    assert len(on(page)) == 1
    page.keyboard.press("Home")
    assert on(page) == ["A"]
    page.keyboard.press("Escape")
    assert on(page) == pinned(page) == []


def test_status_tells_a_screen_reader(page: Any) -> None:
    page.keyboard.press("ArrowRight")
    settle(page)
    said = page.locator("[role=status]").inner_text()
    assert said.startswith("“A”, strongest at row ")
    assert "map of “A”" in page.locator(".frame").get_attribute("aria-label")


def test_one_word_is_in_the_tab_order(page: Any) -> None:
    assert page.locator('.u[tabindex="0"]').count() == 1
    word(page, "red").click()
    page.keyboard.press("ArrowRight")
    assert page.locator('.u[tabindex="0"]').all_inner_texts() == ["circle"]


def test_pieces_of_a_word(page: Any) -> None:
    word(page, "circle").click()
    chips = page.locator(".chip")
    assert chips.all_inner_texts() == ["cir", "cle"]
    whole = page.locator(".about dl").inner_text()
    strengths = set()
    for number in range(2):
        chips.nth(number).hover()
        settle(page)
        assert chips.nth(number).get_attribute("class") == "chip on"
        strengths.add(page.locator(".about dd").first.inner_text())
    assert len(strengths) == 2
    page.locator("h1").hover()
    settle(page)
    assert page.locator(".about dl").inner_text() == whole
    word(page, "red").click()
    settle(page)
    assert page.locator(".chip").count() == 0


def test_candidates_and_probabilities(page: Any) -> None:
    word(page, "red").hover()
    settle(page)
    lines = page.locator(".candidate").all_inner_texts()
    assert lines == ["red 75.0 %", "other 12.5 %"]
    assert page.locator(".said-one").inner_text() == "red 75.0 %"


def test_relevance_on_the_scale_of_the_map(visit: Visit) -> None:
    made = make_explanation([" one", " two", " three", " four"], ((2, 2),), prompt=2)
    made.prompt, made.context_tokens[:] = "ask me", ["ask", " me", " one", " two", " three"]
    made.relevance[2] = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0])
    page = visit(page_text(made))
    word(page, "three").hover()
    settle(page)
    grounds = {
        run.inner_text(): run.evaluate("run => run.style.backgroundColor") for run in page.locator(".r[data-k]").all()
    }
    # The last colour of inferno, half of it laid on the page, and none.
    assert grounds["me"] == "rgb(252, 254, 164)"
    assert grounds["one"] not in ("", grounds["me"])
    assert {grounds[name] for name in ("ask", "two", "three", "four")} == {""}
    assert page.evaluate("[...CSS.highlights.get('later')].map(String)") == [" four"]
    # Browsers without highlights have a rule instead.
    page.evaluate("document.body.classList.add('unlit')")
    later = [word(page, name).evaluate("u => getComputedStyle(u).color") for name in ("two", "four")]
    assert later == ["rgb(29, 28, 26)", "rgb(113, 110, 104)"]


def test_what_is_not_visual_says_so(visit: Visit) -> None:
    made = spotted([(4, 6)], [5, -1, 3])
    made.maps.maps[2] = 0.02
    page = visit(page_text(made))
    page.locator("select[name=scale]").select_option("own")
    for text, verdict, top in (("w1", "flat", "1"), ("w2", "not visual", "1"), ("w0", "visual", "1")):
        word(page, text).hover()
        settle(page)
        assert page.locator(".about b").inner_text() == verdict
        assert page.locator(".high").inner_text() == top
    made.maps.maps[0] *= 0.4
    page = visit(page_text(made))
    page.locator("select[name=scale]").select_option("own")
    word(page, "w0").hover()
    settle(page)
    assert page.locator(".high").inner_text() == "0.40"


def test_value_under_the_pointer(visit: Visit) -> None:
    page = visit(page_text(spotted([(4, 6)], [8], boxes=[(0.25, 0.0, 0.75, 1.0)])))
    word(page, "w0").click()
    frame = page.locator(".frame")
    box = frame.bounding_box()
    readout = page.locator(".readout")

    def at(x: float, y: float) -> str:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return str(readout.inner_text())

    assert at(0.25 + 2.5 / 12, 1.5 / 4) == "row 1, column 2: 1.00"
    assert at(0.26, 0.99) == "row 3, column 0: 0.00"
    assert at(0.2, 0.5) == "outside of what the model was shown"
    page.locator("h1").hover()
    assert readout.inner_text() == "peak 1.00"
    assert "row 1, column 2" in page.locator(".about").inner_text()
    # Of several images it is said which one.
    page = visit(page_text(spotted([(4, 6), (2, 3)], [24 + 5], sources=[0, 1])))
    word(page, "w0").click()
    settle(page)
    assert "Image 2, row 1, column 2" in page.locator(".about").inner_text()


def test_video(visit: Visit) -> None:
    page = visit(page_text(film()))
    when = page.locator(".when")
    assert when.inner_text() == "0.25 s"
    assert page.locator(".thumb").count() == 4
    # The film turns to where a word is seen.
    word(page, "runs").click()
    settle(page)
    assert when.inner_text() == "2.25 s"
    assert page.locator(".thumb.now").get_attribute("aria-label") == "2.25 s"
    first = page.locator(".film .frame img").get_attribute("src")
    page.locator(".thumb").nth(0).click()
    settle(page)
    assert (when.inner_text(), page.locator(".readout").inner_text()) == ("0.25 s", "peak 0.00")
    assert page.locator(".film .frame img").get_attribute("src") != first
    page.keyboard.press("ArrowRight")
    assert when.inner_text() == "1.25 s"
    # A row of the timeline is a word; its cells are frames.
    row = page.locator(".time").filter(has_text="dog")
    box = row.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    settle(page)
    assert pinned(page) == ["dog"]
    assert when.inner_text() == "3.25 s"
    strongest = row.locator("canvas").evaluate(
        "c => { const d = c.getContext('2d').getImageData(0, 0, 4, 1).data; return [d[0], d[4], d[8], d[12]]; }"
    )
    assert strongest == [0, 252, 0, 0]


def test_a_video_plays(visit: Visit) -> None:
    page = visit(page_text(film()))
    page.locator(".play").click()
    assert page.locator(".play").inner_text() == "Pause"
    for number in range(1, 6):
        expect(page.locator(".when")).to_have_text(f"{number % 4}.25 s", timeout=5000)
    page.locator(".play").click()
    still = page.locator(".when").inner_text()
    page.wait_for_timeout(900)
    assert page.locator(".when").inner_text() == still


def test_compared_columns_point_together(visit: Visit) -> None:
    one = spotted([(4, 6)], [5, 7, 9])
    two = spotted([(2, 2)], [3, 1], tokens=[" w2", " w0"])
    made = write_page(page_of([one, two], titles=["one", "two"], rows=[(0, 1), (2, 0)]))
    page = visit(made)
    assert page.locator("h2").all_inner_texts() == ["one", "two"]
    sources = [image.get_attribute("src") for image in page.locator(".frame img").all()]
    assert len(sources) == 2
    assert sources[0] == sources[1]
    first, second = page.locator(".column").all()
    first.locator(".word").filter(has_text="w0").hover()
    assert on(page) == ["w0", "w0"]
    second.locator(".word").filter(has_text="w2").hover()
    assert on(page) == ["w2", "w2"]
    first.locator(".word").filter(has_text="w1").hover()
    assert on(page) == ["w1"]
    assert second.locator(".about").inner_text() == "No word is chosen."


def test_of_a_long_text_what_is_in_sight_is_coloured(visit: Visit) -> None:
    made = make_explanation([f" w{number}" for number in range(1500)], ((2, 2),), prompt=2)
    made.relevance.fill_(0.0)
    made.relevance[1499, :] = 1.0
    page = visit(page_text(made))
    page.evaluate("page.hold(page.views[0], 1499, false)")
    settle(page)

    def is_coloured(place: int) -> bool:
        return bool(page.locator(f'.r[data-k="{place}"]').evaluate("run => run.style.backgroundColor !== ''"))

    assert is_coloured(2)
    assert not is_coloured(1400)
    page.locator('.r[data-k="1400"]').scroll_into_view_if_needed()
    settle(page)
    settle(page)
    assert is_coloured(1400)
    # Paper has no scrolling.
    assert not is_coloured(750)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert is_coloured(750)
