"""The page's text: what is escaped, what the policy allows, what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tam_fast.render.jpeg import encode, encode_all
from tam_fast.render.page import GENERATOR, Column, PageData, Panel, Run, Section, Still, Unit, page

HOSTILE = "</script><script>x</script><!-- \u2028\u2029 \ud800 \x00 & \"' {{ 7 }}"


def data(text: str = "word", **fields: Any) -> PageData:
    """A page of one token over one image of (2, 3) cells, `text` in every place."""
    column = Column(
        title=text,
        note=text,
        sections=[Section("user", [Run(text, 0)], text), Section(text, [Run(text)]), Section("a", [Run(text, 1, 0)])],
        units=[Unit(text, 0, 1)],
        tokens=[text],
        places=[1],
        panels=[Panel(0, 2, 3)],
        levels=np.arange(6, dtype=np.uint8)[None] * 51,
        peaks=np.array([0.5], np.float32),
        relevance=np.array([255], np.uint8),
        reliance=np.array([0.25], np.float32),
        reach=[1],
        candidates=[[(text, 0.5)]],
        flat=[False],
        scores=[0.75],
    )
    picture = Image.new("RGB", (30, 20), (9, 99, 199))
    return PageData(text, [Still(picture, picture.size, text)], [replace(column, **fields)])


class Reader(HTMLParser):
    """What a browser would see: elements and their attributes, and the texts of some."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_data(self, text: str) -> None:
        self.texts.setdefault(self.tags[-1] if self.tags else "", []).append(text)


def document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return found


def test_the_policy_names_what_stands_in_the_page() -> None:
    text = page(data())
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#39;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for name, inside in (
        ("script-src", text.split("<script>")[1].split("</script>")[0]),
        ("style-src", text.split("<style>")[1].split("</style>")[0]),
    ):
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy
    # Before anything that could load or run, and our mark within the first bytes.
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert GENERATOR in text[:1000]


def test_hostile_texts_are_texts() -> None:
    plain, hostile = Reader(page(data())), Reader(page(data(HOSTILE)))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert hostile.texts["h1"][0] == HOSTILE.replace("\ud800", "\ufffd").replace("\x00", "\u2400")
    page(data(HOSTILE)).encode("utf-8")


def test_the_script_s_data() -> None:
    text = page(data(HOSTILE))
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert inside.isascii()
    assert not set("<>&\u2028\u2029") & set(inside)
    column = document(text)["columns"][0]
    assert column["tokens"] == [HOSTILE.replace("\ud800", "\ufffd").replace("\x00", "\u2400")]
    assert list(base64.b64decode(column["levels"])) == [0, 51, 102, 153, 204, 255]
    assert (column["peaks"], column["reliance"], column["scores"]) == ([0.5], [0.25], [0.75])
    assert column["panels"] == [{"still": 0, "height": 2, "width": 3, "box": [0.0, 0.0, 1.0, 1.0]}]


def test_nothing_is_asked_of_the_network() -> None:
    text = page(data())
    assert "url(" not in text.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\s*\(", text)
    for name, value in Reader(text).attributes:
        if name in ("src", "href", "srcset", "action", "poster"):
            assert value.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("name", ["maps.js", "paint.js", "film.js", "page.js", "page.css", "template.html.jinja"])
def test_the_files_are_small_and_have_no_end_tag(name: str) -> None:
    text = (resources.files("tam_fast.render") / "page" / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    if not name.endswith("jinja"):
        assert "</" not in text
        assert "{{" not in text
    assert "style=" not in text  # the policy allows none


def test_the_underline_says_the_strength() -> None:
    for peak, level in ((0.0, 0), (0.04, 0), (0.5, 5), (1.0, 10)):
        assert f'class="u word s{level}"' in page(data(peaks=np.array([peak], np.float32)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": np.zeros((1, 5), np.uint8)}, "columns[0].levels: expected (1, 6) of uint8, got (1, 5)"),
        ({"levels": np.zeros((1, 6), np.float32)}, "columns[0].levels: expected (1, 6) of uint8"),
        ({"relevance": np.zeros(2, np.uint8)}, "columns[0].relevance: expected 1 of uint8, got 2"),
        ({"peaks": np.zeros(2, np.float32)}, "columns[0].peaks: expected one for each of 1 tokens, got 2"),
        ({"scores": []}, "columns[0].scores: expected one for each of 1 tokens, got 0"),
        ({"units": [Unit("x", 0, 2)]}, "columns[0].units: expected tokens from 0 to 1, got 0 to 2"),
        ({"panels": [Panel(1, 2, 3)]}, "columns[0].panels: expected a still from 0 to 0, got 1"),
        ({"sections": [Section("a", [Run("x", 0, 1)])]}, "columns[0].sections: expected a unit from 0 to 0, got 1"),
    ],
)
def test_parts_that_do_not_agree(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        page(data(**fields))
    assert str(caught.value).startswith(message)


def test_what_a_page_cannot_be() -> None:
    with pytest.raises(ValueError, match="cmap: expected inferno"):
        page(replace(data(), cmap="nosuch"))
    with pytest.raises(ValueError, match="columns: expected at least one"):
        page(replace(data(), columns=[]))
    with pytest.raises(ValueError, match="rows: expected one entry for each of 1 columns, got 2"):
        page(replace(data(), rows=[(0, 0)]))
    with pytest.raises(ValueError, match=re.escape("rows: expected a unit of columns[0] from 0 to 0, got 3")):
        page(replace(data(), rows=[(3,)]))


def test_jpeg_of_a_bounded_size() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 1000, 3), dtype=np.uint8))
    for budget in (300_000, 60_000):
        made = encode(noise, budget)
        assert len(made) <= budget
    plain = encode(Image.new("RGBA", (3000, 1500), (10, 20, 30, 40)))
    with Image.open(io.BytesIO(plain)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (1440, 720))
    one, none, two = encode_all([noise, None, noise])
    assert none is None
    assert one is not None
    assert two is not None
    assert len(one) + len(two) <= 900_000
