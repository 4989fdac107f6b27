"""The page of an evaluation: whole without network or script, and safe whatever names and answers say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

import io

from measured import write_rows
from PIL import Image

from tam_fast.evaluation.gallery import Gallery, Shown, _chosen, gathered
from tam_fast.evaluation.page import _choose, _ends, page
from tam_fast.evaluation.results import Results, read_results
from tam_fast.evaluation.rows import Row, Rows, stem_of

HOSTILE = "\"><script>alert(1)</script><img src='https://example.org/x' onerror=alert(2)> {{ 7 * 7 }} \u2028 &amp;"


def kept(index: int, name: str, score: float, text: str = "a red star") -> Shown:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (20 * index % 255, 90, 160)).save(out, "JPEG")
    levels = np.zeros((3, 4), dtype=np.uint8)
    levels[index % 3, index % 4] = 255
    maps = base64.b64encode(levels.tobytes()).decode("ascii")
    scores = {"tam": score, "cam": score / 2}
    return Shown(
        item=name,
        text=text,
        index=index,
        figure="obj_iou",
        image=base64.b64encode(out.getvalue()).decode("ascii"),
        box=[0.0, 0.0, 1.0, 1.0],
        shape=[3, 4],
        words=[{"place": 2, "text": "star"}],
        scores=scores,
        values={method: {"2": value} for method, value in scores.items()},
        maps={method: {"2": maps} for method in scores},
    )


def keep(folder: Path, *shown: Shown) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    for one in shown:
        (folder / "pictures" / f"{stem_of(one.item)}.json").write_text(json.dumps(asdict(one)), encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = write_rows(tmp_path_factory.mktemp("page"), range(12), curves=True)
    keep(folder, *(kept(index, f"item {index}", index / 10) for index in range(9)))
    return read_results([folder], resamples=50)


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return page(results)


class Seen(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole(text: str) -> None:
    seen = Seen(text)
    for tag in ("script", "link", "iframe", "object", "form", "base"):
        assert not seen.every(tag)
    addresses = [one.get("src") or "" for one in seen.every("img")] + [
        one["srcset"] or "" for one in seen.every("source")
    ]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    anchors = {one["id"] for _, one in seen.tags if one.get("id")}
    assert {(one["href"] or "").removeprefix("#") for one in seen.every("a")} <= anchors
    assert not [name for _, one in seen.tags for name in one if name.startswith("on") or name == "style"]


def test_the_policy_allows_the_style_and_nothing_else(text: str) -> None:
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(one["content"] for one in Seen(text).every("meta") if one.get("http-equiv"))
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "prefers-color-scheme: dark" in style


def test_figures_stand_in_the_table(results: Results, text: str) -> None:
    cell = results.cell("tam", "obj_iou")
    assert cell is not None
    assert f'<span class="value">{100 * cell.value:.1f}</span>' in text
    assert f'<span class="range">{100 * cell.low:.1f}–{100 * cell.high:.1f}</span>' in text
    rows = re.findall(r'<th scope="row"><code>([^<]+)</code>', text)
    assert rows == results.methods
    marks = re.findall(r'class="mark (better|worse)"', text.partition("<tbody>")[2].partition("</tbody>")[0])
    assert {"better", "worse"} == set(marks)


def test_worse_is_by_the_direction_of_the_figure(results: Results) -> None:
    def marks(figure: str) -> set[str]:
        cells = [
            replace(cell, figure=figure, difference=0.5 if cell.method == "tam" else math_nan, p=0.001)
            for cell in results.cells
            if cell.figure == "obj_iou" and cell.method in ("tam", "cam")
        ]
        text = page(replace(results, cells=cells, figures=[figure], methods=["tam", "cam"], curves=[]))
        return set(re.findall(r'class="mark (better|worse)"', text.partition("<tbody>")[2].partition("</tbody>")[0]))

    math_nan = float("nan")
    assert marks("obj_iou") == {"better"}
    assert marks("deletion") == {"worse"}


def test_names_and_answers_are_text(tmp_path: Path) -> None:
    folder = write_rows(tmp_path, [0, 1])
    keep(folder, kept(0, HOSTILE, 0.1, HOSTILE), kept(1, "b", 0.9))
    Rows(folder).write([Row(7, "x", status="error", error=HOSTILE)])
    results = read_results([folder], resamples=10)
    text = page(results, title=HOSTILE)
    seen = Seen(text)
    assert not seen.every("script")
    assert not [one for one in seen.every("img") if not (one["src"] or "").startswith("data:")]
    assert seen.text.count("{{ 7 * 7 }}") >= 3  # title, heading, item, error: as they are
    assert "49" not in seen.text.partition("Left out")[2]


def test_overlays_show_the_maps(results: Results) -> None:
    """The brightest place of a picture is the cell that the map names."""
    shown = gathered(results.folders)[0]
    from tam_fast.evaluation.page import _tile

    tile = _tile(shown, "tam", "2")
    assert tile.value == f"{100 * shown.values['tam']['2']:.0f}"
    data = base64.b64decode(tile.picture.partition(",")[2])
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    change = np.abs(drawn - np.median(drawn, axis=(0, 1))).sum(axis=2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    cell = np.unravel_index(shown.raster("tam", "2").argmax(), (3, 4))
    assert (row * 3 // change.shape[0], column * 4 // change.shape[1]) == tuple(cell)


def test_the_worst_and_the_best_are_chosen(results: Results) -> None:
    shown = gathered(results.folders)
    worst, best = _ends(shown, "tam")
    assert [one.item for one in worst] == ["item 0", "item 1", "item 2"]
    assert [one.item for one in best] == ["item 8", "item 7", "item 6"]
    assert [one.item for one in _choose(shown, ["tam", "cam"])] == [f"item {place}" for place in (0, 1, 2, 6, 7, 8)]
    one_only = _ends(shown[:1], "tam")
    assert ([one.item for one in one_only[0]], one_only[1]) == (["item 0"], [])


def test_galleries_of_shards_are_one(tmp_path: Path) -> None:
    every = [kept(index, f"item {index}", (index * 7 % 12) / 12) for index in range(12)]
    parts = [tmp_path / str(part) for part in range(2)]
    for number, part in enumerate(parts):
        part.mkdir()
        keep(part, *every[number::2])
    whole = tmp_path / "whole"
    whole.mkdir()
    keep(whole, *every)
    assert gathered(parts, 2) == gathered([whole], 2)
    names = {stem_of(one.item): one for one in every}
    assert _chosen({stem: one.scores for stem, one in names.items()}, 2) == {
        stem for stem, one in names.items() if one.scores["tam"] * 12 < 1.5 or one.scores["tam"] * 12 > 9.5
    }


def test_a_gallery_finds_what_it_kept(tmp_path: Path) -> None:
    keep(tmp_path, kept(0, "a", 0.2), kept(1, "b", 0.8))
    found = Gallery(tmp_path, keep=1)
    assert sorted(score["tam"] for score in found._scores.values()) == [0.2, 0.8]


def test_a_page_of_nothing_but_errors(tmp_path: Path) -> None:
    Rows(tmp_path).write([Row(0, "a", status="error", error="image: broken")])
    text = page(read_results([tmp_path], resamples=5))
    assert "image: broken" in text
    assert "<table" not in text
