"""What of an explanation comes onto a page: texts at their places, maps and relevances as they are."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explanations import make_explanation
from pages import film as plain_film
from pages import spotted
from PIL import Image

from tam_fast.explanation import Candidate, Explanation
from tam_fast.explanation.page import page_of, page_text
from tam_fast.render.page import Column, Run


def column(e: Explanation) -> Column:
    return page_of([e]).columns[0]


def maps_of(found: Column) -> torch.Tensor:
    return torch.from_numpy(found.levels) / 255 * torch.from_numpy(found.peaks)[:, None]


def said(runs: Any) -> str:
    return "".join(run.text for run in runs)


def test_words_come_first_and_tokens_without_one_follow() -> None:
    e = make_explanation()
    found = column(e)
    assert [(u.text, u.start, u.stop) for u in found.units if u.is_word] == [(w.text, w.start, w.stop) for w in e.words]
    assert [u.text for u in found.units if not u.is_word] == [".", "end"]
    covered = sorted({token for unit in found.units for token in range(unit.start, unit.stop)})
    assert covered == list(range(len(e)))


def test_the_answer_is_cut_at_tokens_and_words() -> None:
    e = make_explanation()
    runs = column(e).sections[-1].runs
    assert said(runs) == e.text
    circle = next(number for number, word in enumerate(e.words) if word.text == "circle")
    assert [run for run in runs if run.unit == circle] == [Run("cir", 3 + 2, circle), Run("cle", 3 + 3, circle)]
    # The space before a word has neither colour nor unit.
    assert Run(" ") in runs
    # The end mark shows nothing, but can be pointed at.
    assert runs[-1] == Run("", 3 + 12, len(column(e).units) - 1)


def test_every_unit_is_on_the_page() -> None:
    for e in (make_explanation(), spotted([(2, 2)], [1, 2, 3]), plain_film()):
        found = column(e)
        assert {run.unit for run in found.sections[-1].runs} - {None} == set(range(len(found.units)))


def test_the_prompt_s_pieces_lie_in_its_text() -> None:
    e = make_explanation(prompt=4)
    e.prompt, e.context_tokens[:4] = "Was ist\nhier?", ["Was", " ist", "hier", "?"]
    (asked, _) = column(e).sections
    assert said(asked.runs) == e.prompt
    assert [(run.text, run.place) for run in asked.runs if run.place is not None] == [
        ("Was", 0),
        ("ist", 1),
        ("hier", 2),
        ("?", 3),
    ]
    assert (asked.role, asked.media) == ("user", "1 image")


def test_bytes_of_a_character_share_it() -> None:
    e = make_explanation(prompt=5)
    e.prompt, e.context_tokens[:5] = "a 🦊猫 b", ["a", " \ufffd", "\ufffd\ufffd", "猫", " b"]
    (asked, _) = column(e).sections
    assert said(asked.runs) == e.prompt
    assert [(run.text.strip(), run.place) for run in asked.runs if run.place is not None] == [
        ("a", 0),
        ("🦊", 1),
        ("猫", 3),
        ("b", 4),
    ]


def test_pieces_that_the_prompt_does_not_hold_stand_apart() -> None:
    e = make_explanation(prompt=3)
    asked, context, _ = column(e).sections
    assert (said(asked.runs), said(context.runs)) == ("What is it?", "c0c1c2")
    assert [run.place for run in context.runs] == [0, 1, 2]


def test_a_conversation_is_told_in_turns() -> None:
    e = make_explanation(prompt=3)
    e.messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Describe it."}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    ]
    e.context_tokens[:3] = ["How", " many", "?"]
    sections = column(e).sections
    assert [(section.role, section.media) for section in sections] == [
        ("user", "2 images"),
        ("assistant", ""),
        ("user", ""),
        ("assistant", ""),
    ]
    # The context is the last turn alone.
    assert [run.place for section in sections[:2] for run in section.runs] == [None, None]
    assert [(run.text, run.place) for run in sections[2].runs if run.place is not None] == [
        ("How", 0),
        ("many", 1),
        ("?", 2),
    ]
    # Or all of them.
    e = make_explanation(prompt=8)
    e.messages = [{"role": "user", "content": "Hi you."}, {"role": "assistant", "content": "A cat."}]
    e.messages += [{"role": "user", "content": "So?"}]
    e.context_tokens[:8] = ["Hi", " you", ".", "A", " cat", ".", "So", "?"]
    sections = column(e).sections[:3]
    assert [[run.place for run in section.runs if run.place is not None] for section in sections] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7],
    ]


def test_thinking_and_what_was_not_explained(film: Explanation) -> None:
    film.messages = None
    asked, thinking, answer = column(film).sections
    assert [(run.text, run.place) for run in asked.runs if run.place is not None] == [("What", 0), ("happens?", 1)]
    assert (thinking.role, thinking.runs) == ("thinking", [Run("hm", 3)])
    assert said(answer.runs) == film.text
    assert [run.place for run in answer.runs if run.text == ","] == [7]
    assert [run.place for run in answer.runs if run.unit is not None] == [5, 6, 8, 9, 10, 11]


def test_maps_are_those_of_the_canvases() -> None:
    boxes = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    e = make_explanation(["a", " b"], ((3, 3), (3, 3)), boxes=boxes, sources=[0, 0])
    found = column(e)
    (panel,) = found.panels
    assert (panel.height, panel.width, panel.box) == (3, 6, (0.0, 0.0, 1.0, 1.0))
    for token in range(2):
        torch.testing.assert_close(maps_of(found)[token].reshape(3, 6), e[token], atol=1 / 509, rtol=0)


def test_several_images_and_a_video() -> None:
    e = make_explanation(["a"], ((2, 2), (3, 1)), sources=[0, 2])
    data = page_of([e])
    assert [still.label for still in data.stills] == ["Image 1", "Image 2", "Image 3"]
    assert [panel.still for panel in data.columns[0].panels] == [0, 2]
    data = page_of([plain_film()])
    assert [(still.label, still.video) for still in data.stills] == [
        ("0.25 s", 0),
        ("1.25 s", 0),
        ("2.25 s", 0),
        ("3.25 s", 0),
    ]
    # The first of the frames that an index shows.
    assert [still.image.getpixel((0, 0))[0] for still in data.stills if still.image] == [60, 100, 140, 180]


def test_relevance_is_that_of_each_row() -> None:
    e = make_explanation(["a", " b", " c"], prompt=2)
    found = column(e)
    assert list(found.reach) == [2, 3, 4]
    start = 0
    for token, count in enumerate(found.reach):
        row = torch.from_numpy(found.relevance[start : start + count]) / 255 * float(found.reliance[token])
        torch.testing.assert_close(row, e.relevance[token, :count], atol=1 / 509, rtol=0)
        start += count


def test_not_a_number_is_nothing() -> None:
    e = make_explanation(["a", " b"], ((2, 2),))
    e.maps.maps[0, :] = float("nan")
    found = column(e)
    assert found.peaks.tolist()[0] == 0
    assert not found.levels[0].any()
    json.loads(page_text(e).split('id="data">')[1].split("</script>")[0])


def test_another_method_s_maps_have_no_grounding() -> None:
    e = make_explanation(["a"], method="cam+eci")
    assert column(e).scores is None
    assert column(e).note.startswith("maps of cam+eci")
    assert column(make_explanation(["a"])).scores is not None


def test_text_alone(text_only: Explanation) -> None:
    page = page_text(text_only)
    assert "Text alone" in page
    assert '<div class="frame"' not in page


def test_without_pictures_maps_lie_on_an_empty_ground() -> None:
    e = make_explanation(["a"], ((2, 3),))
    e.images.clear()
    (still,) = page_of([e]).stills
    assert (still.image, still.size) == (None, (3, 2))
    assert "data:image/jpeg" not in page_text(e)


def test_columns_share_pictures_and_have_their_titles() -> None:
    one, two = make_explanation(["a"], ((2, 2),)), make_explanation(["b"], ((3, 3),), seed=1)
    data = page_of([one, two], titles=["one", "two"], rows=[(0, 0)])
    assert (len(data.stills), [c.title for c in data.columns]) == (1, ["one", "two"])
    with pytest.raises(ValueError, match="titles: expected one for each of 2 explanations, got 1"):
        page_of([one, two], titles=["one"])
    with pytest.raises(ValueError, match="explanations: expected at least one"):
        page_of([])


def test_save_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = make_explanation()
    path = tmp_path / "page.html"
    assert e.save_html(path) == path
    first = path.read_bytes()
    assert e.save_html(str(path), title="Other", cmap="viridis") == path
    assert b"<title>Other</title>" in path.read_bytes() != first
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="path: expected one that is free or an earlier page's"):
        e.save_html(path)
    e.save_html(path, force=True)
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.html, got"):
        e.save_html(tmp_path / "page.txt")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(FileExistsError, match="is no file"):
        e.save_html(tmp_path / "folder.html", force=True)
    with pytest.raises(FileNotFoundError):
        e.save_html(tmp_path / "none" / "page.html")
    with pytest.raises(ValueError, match="cmap: expected"):
        e.save_html(tmp_path / "new.html", cmap="nosuch")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        e.save_html(path)
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.iterdir()) == ["folder.html", "page.html"]


def test_no_path_and_no_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg", exif=exif, comment=b"a secret comment", icc_profile=b"secret" * 9)
    with Image.open(tmp_path / "x.jpg") as image:
        image.load()
        text = page_text(make_explanation(["a"], ((2, 2),), images=[image]))
    (data,) = set(re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text))
    assert b"secret" not in base64.b64decode(data)
    assert str(tmp_path) not in text


def test_in_a_notebook() -> None:
    e = make_explanation()
    shown = e._repr_html_()
    frame, rest = shown.split("</iframe>")
    assert 'sandbox="allow-scripts"' in frame
    assert html.unescape(frame.split('srcdoc="')[1].split('"')[0]) == page_text(e)
    assert "<script" not in frame
    assert rest.startswith("<details><summary>")
    assert "<img" in rest
    assert "<script" not in rest
    assert "<img" not in make_explanation(["a"] * 300)._repr_html_().split("</iframe>")[1]


def test_the_size_of_a_photograph_s_page() -> None:
    """A photograph of 1440 x 1080, 100 tokens, 1,296 cells: at most 1.5 MB, whatever is on it."""
    chance = np.random.default_rng(0)
    rough = chance.integers(0, 256, (1080, 1440, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(chance.integers(0, 256, (27, 36, 3), dtype=np.uint8)).resize((1440, 1080)))
    tokens = [f" word{number}" for number in range(100)]
    for picture in (rough, smooth):
        e = make_explanation(tokens, ((36, 36),), images=[Image.fromarray(picture)], prompt=30)
        e.candidates[:] = [[Candidate(number, f" other{number}", 0.3) for number in range(3)] for _ in tokens]
        assert len(page_text(e).encode()) <= 1_500_000
