"""Fonts: one that has the characters is found, also by looking; what none has is written otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import ImageFont

from tam_fast.render import fonts


def _dejavu() -> Path:
    try:
        return Path(ImageFont.truetype("DejaVuSans.ttf", 20).path)
    except OSError:
        pytest.skip("needs the font DejaVu Sans")


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system that has no fonts but those that a test puts into the folder."""
    monkeypatch.setattr(fonts, "_SYSTEM_FONTS", ())
    monkeypatch.setattr(fonts, "_font_folders", lambda: [tmp_path])
    for cached in (fonts._font_files, fonts._found):
        cached.cache_clear()
    yield tmp_path
    for cached in (fonts._font_files, fonts._found):
        cached.cache_clear()


def test_plain_text_takes_pillows_own(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_font_folders", lambda: pytest.fail("nothing is to be looked for"))
    make, clean = fonts.font_for("A plain text.", None)
    assert make(20).getname() == ImageFont.load_default(20).getname()
    assert make(20) is make(20)
    assert clean("A\tplain text.\x07") == "A    plain text.\\x07"


def test_a_font_of_any_name_is_found(empty: Path) -> None:
    text = "\u05d0 \u0416 plain"  # Hebrew and Cyrillic: not in Pillow's own font
    _, clean = fonts.font_for(text, None)
    assert clean("\u05d0") == "\\u05d0"
    (empty / "deep").mkdir()
    (empty / "broken.ttf").write_bytes(b"no font")
    shutil.copy(_dejavu(), empty / "deep" / "any name.TTF")
    for cached in (fonts._font_files, fonts._found):
        cached.cache_clear()
    make, clean = fonts.font_for(text, None)
    assert make(20).getname()[0] == "DejaVu Sans"
    assert clean(text) == text


def test_a_font_that_adds_nothing_is_not_taken(empty: Path) -> None:
    shutil.copy(_dejavu(), empty / "a.ttf")
    make, clean = fonts.font_for("\u732b \u3042 plain", None)  # no CJK in DejaVu Sans
    assert make(20).getname() == ImageFont.load_default(20).getname()
    assert clean("\u732b") == "\\u732b"


def test_the_font_that_lacks_least_is_taken(empty: Path) -> None:
    """No font has all; the smaller one, which is tried later, lacks more."""
    shutil.copy(_dejavu(), empty / "a.ttf")
    try:
        mono = Path(ImageFont.truetype("DejaVuSansMono.ttf", 20).path)
    except OSError:
        pytest.skip("needs the font DejaVu Sans Mono")
    shutil.copy(mono, empty / "b.ttf")
    assert (empty / "b.ttf").stat().st_size < (empty / "a.ttf").stat().st_size
    make, clean = fonts.font_for("\u05d0 \u0416 \u732b", None)
    assert make(20).getname()[0] == "DejaVu Sans"
    assert clean("\u05d0\u0416\u732b") == "\u05d0\u0416\\u732b"


def test_letters_lose_their_accents_before_they_become_escapes(empty: Path) -> None:
    _, clean = fonts.font_for("\u1ea5\u4e00", None)
    assert clean("\u1ea5\u4e00") == "a\\u4e00"


def test_lines_keep_how_pieces_look() -> None:
    font = ImageFont.load_default(20)
    lines = fonts.flow([("one two", 1), (" three", 2), ("four\nfive", None)], font, font.getlength("one two three"))
    assert ["".join(text for text, _ in line) for line in lines] == ["one two", "threefour", "five"]
    assert [look for line in lines for _, look in line] == [1, 1, 2, None, None]


def test_a_given_font_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot open resource"):
        fonts.font_for("a", tmp_path / "none.ttf")
