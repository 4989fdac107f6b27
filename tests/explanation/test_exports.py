"""Arrays, tables, masks, boxes and polygons: in the image's pixels, where the map says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from explanations import make_explanation
from pages import film, spotted

from tam_fast.explanation import Explanation
from tam_fast.maps.metrics import otsu_threshold
from tam_fast.maps.outlines import bounds, polygons, run_lengths


def blob(maps: list[list[list[float]]], **fields: Any) -> Explanation:
    """Explanations of tokens " w0", " w1", ... with maps on one grid over a picture of 60 x 40 pixels."""
    values = torch.tensor(maps)
    tokens = [f" w{number}" for number in range(len(maps))]
    return make_explanation(tokens, [values.shape[1:]], maps=values.flatten(1), **fields)


def test_arrays_are_the_maps() -> None:
    e = make_explanation()
    found = e.to_numpy()
    assert (found.dtype, found.shape) == (np.float32, (13, 4, 6))
    for token in range(len(e)):
        assert (found[token] == e[token].numpy()).all()
    assert (e.to_numpy("circle") == e["circle"].numpy()).all()
    found[:] = -1
    assert e.maps.maps.min() >= 0
    two = make_explanation(shapes=[(2, 3), (4, 5)], sources=[0, 1])
    assert [part.shape for part in two.to_numpy()] == [(13, 2, 3), (13, 4, 5)]
    assert (two.to_numpy(1)[1] == two[1][1].numpy()).all()


def test_arrays_of_text_alone(text_only: Explanation) -> None:
    assert text_only.to_numpy() == []


def test_a_mask_is_what_the_overlay_shows() -> None:
    """One cell of (6, 8) on 80 x 60 pixels: a square of ten around its middle, rounded by the enlargement."""
    e = spotted([(6, 8)], [19], size=(80, 60))  # row 2, column 3
    mask = e.mask("w0")
    assert (mask.dtype, mask.shape) == (np.bool_, (60, 80))
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (24.5, 34.5)
    assert mask[25, 35]
    x0, y0, x1, y1 = e.box("w0")
    assert (x0, y0, x1, y1) == bounds(mask) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert 28 <= x0 <= 32 < 38 <= x1 <= 42
    assert 18 <= y0 <= 22 < 28 <= y1 <= 32
    assert not e.mask("w0", 1.0).any()
    assert e.mask("w0", 0.0).sum() > mask.sum() > e.mask("w0", 0.8).sum() > 0


def test_otsu_is_that_of_the_pixels() -> None:
    e = make_explanation()
    levels = np.asarray(e.overlay("circle", cmap="jet", opacity=0.0))  # sizes alone
    assert e.mask("circle").shape == levels.shape[:2]
    from tam_fast.render import levels_on

    drawn, covered = levels_on((60, 40), e._placed(e.vector("circle"), 0))
    assert covered.all()
    assert (e.mask("circle") == (drawn > otsu_threshold(drawn))).all()
    assert (e.mask("circle", 0.5) == (drawn > 127.5)).all()


def test_pixels_that_no_grid_covers_do_not_count() -> None:
    """A map over the middle of the image: its own dark cells are Otsu's, not what lies around."""
    box = (0.25, 0.25, 0.75, 0.75)
    values = torch.tensor([[0.5, 0.5, 0.9, 0.9]])
    e = make_explanation(["cat"], [(2, 2)], boxes=[box], maps=values)
    mask = e.mask("cat")
    assert mask[26, 30]
    assert not mask[14, 30]
    assert e.box("cat")[1] >= 16
    outside = mask.copy()
    outside[10:30, 15:45] = False
    assert not outside.any()


def test_nothing_and_all() -> None:
    e = blob([[[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]], [[float("nan")] * 2, [0.0, 1.0]]])
    assert not e.mask("w0").any()
    assert not e.mask("w0", 0.0).any()
    assert e.box("w0") is None
    assert e.polygons("w0") == []
    assert e.rle("w0") == {"size": [40, 60], "counts": [2400]}
    assert e.mask("w1").all()
    assert e.box("w1") == (0, 0, 60, 40)
    assert e.polygons("w1") == [[0, 0, 60, 0, 60, 40, 0, 40]]
    assert e.mask("w2")[30, 45]
    assert not e.mask("w2")[5, 5]


def test_polygons_and_run_lengths_are_the_masks() -> None:
    e = make_explanation()
    for key in ("red", "circle", 3, (2, 5)):
        mask = e.mask(key, 0.6)
        assert e.polygons(key, 0.6) == polygons(mask)
        assert e.rle(key, 0.6) == run_lengths(mask)
        assert e.rle(key, 0.6, compressed=True) == run_lengths(mask, compressed=True)
        assert json.loads(json.dumps([e.polygons(key, 0.6), e.rle(key, 0.6)])) == [polygons(mask), run_lengths(mask)]


def test_several_images_share_one_threshold() -> None:
    maps = torch.zeros(1, 12)
    maps[0, 0], maps[0, 7] = 1.0, 0.2
    e = make_explanation(["cat"], [(2, 3), (2, 3)], sources=[0, 1], maps=maps)
    first, second = e.mask("cat")
    assert first.any()
    assert not second.any()
    assert e.box("cat") == [bounds(first), None]
    assert [len(part) for part in e.polygons("cat")] == [1, 0]
    assert [part["size"] for part in e.rle("cat")] == [[40, 60]] * 2
    assert e.mask("cat", 0.1)[1].any()


def test_a_video_is_masked_index_by_index() -> None:
    e = film()
    mask = e.mask("dog")
    assert mask.shape == (4, 160, 240)
    assert mask.any((1, 2)).tolist() == [False, True, False, False]
    assert e.box("dog") == [None, bounds(mask[1]), None, None]
    assert e.box("dog", video=0) == e.box("dog")
    assert [len(part) for part in e.polygons("runs")] == [0, 0, 1, 0]
    with pytest.raises(IndexError, match="video: expected one from 0 to 0, got 1"):
        e.mask("dog", video=1)


def test_images_beside_a_video(film: Explanation) -> None:
    assert film.mask("cat").shape == (20, 30)
    assert film.mask("cat", video=0).shape == (3, 16, 24)
    assert isinstance(film.box("cat", video=0), list)


@pytest.mark.parametrize("name", ["mask", "box", "polygons", "rle"])
def test_what_cannot_be_masked(name: str, text_only: Explanation) -> None:
    ask = getattr(make_explanation(), name)
    with pytest.raises(KeyError, match="'cat' is not in the answer; its words are: A, red, circle"):
        ask("cat")
    for wrong in ("mean", 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="threshold: expected 'otsu' or a number from 0 to 1, got"):
            ask("red", wrong)
    for wrong in (None, True, [0.5]):
        with pytest.raises(TypeError, match="threshold: expected 'otsu' or a number from 0 to 1, got"):
            ask("red", wrong)
    with pytest.raises(ValueError, match="images: expected an explanation that holds some"):
        getattr(text_only, name)(0)
    with pytest.raises(ValueError, match="images: expected an explanation that holds some"):
        getattr(make_explanation(images=[]), name)(0)


def test_a_table_has_a_row_a_word() -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    e = make_explanation()
    table = e.to_dataframe()
    assert table["word"].tolist() == [word.text for word in e.words]
    row = table.loc[table["word"] == "circle"].iloc[0]
    word, peak = e.find("circle")[0], e.peak("circle")
    assert (row["start"], row["stop"]) == (word.start, word.stop)
    assert row["strength"] == word.strength == peak.value
    assert row["grounding"] == word.grounding
    assert (row["peak_x"], row["peak_y"]) == (peak.x * 60, peak.y * 40)
    cell = (peak.column * 10, peak.row * 10, peak.column * 10 + 10, peak.row * 10 + 10)
    assert row["peak_box"] == pytest.approx(cell)
    assert row["box"] == e.box("circle")
    relevance = e.relevance[word.start : word.stop].amax(dim=0)
    assert row["relevance"] == pytest.approx(float(relevance.max()))
    assert row["context"] == e.context_tokens[int(relevance.argmax())]
    assert row["image"] == 0
    assert table["video"].isna().all()


def test_a_table_of_what_there_is_not(text_only: Explanation) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    table = text_only.to_dataframe()
    assert table["word"].tolist() == ["A", "b", "c"]
    assert table[["image", "peak_x", "box"]].isna().all(axis=None)
    assert table["relevance"].notna().all()
    empty = make_explanation([]).to_dataframe()
    assert len(empty) == 0
    assert (empty.dtypes == table.dtypes).all()
    assert pandas.concat([empty, table]).columns.tolist() == table.columns.tolist()
    assert make_explanation(method="cam").to_dataframe()["grounding"].isna().all()


def test_a_table_of_a_video_and_of_several_images() -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    moving = film()
    row = moving.to_dataframe().iloc[0]
    assert (row["word"], row["video"], row["frame"], row["time"]) == ("dog", 0, 1, 1.25)
    assert row["box"] == moving.box("dog")[1]
    maps = torch.zeros(1, 12)
    maps[0, 7] = 1.0
    two = make_explanation(["cat"], [(2, 3), (2, 3)], sources=[0, 1], maps=maps).to_dataframe().iloc[0]
    assert two["image"] == 1
    assert two["box"] is not None
    assert two["peak_box"] == pytest.approx((20, 0, 40, 20))


def test_a_table_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pandas: expected it for to_dataframe: pip install pandas"):
        make_explanation().to_dataframe()
