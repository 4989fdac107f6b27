"""From rows to results, and from results to tables."""

from __future__ import annotations

import csv as reader
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import functools
import operator

from measured import LEVELS, METHODS, rows_of, write_rows

from tam_fast.evaluation.measures import Figure
from tam_fast.evaluation.results import Results, read_results
from tam_fast.evaluation.rows import Row, Rows
from tam_fast.evaluation.tables import best, csv, latex, markdown, shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), range(40), curves=True)


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return read_results([folder], resamples=400, seed=1)


# Results


def values(method: str, figure: str, items: range = range(40)) -> list[list[float]]:
    """Values by image."""
    some = [[row.value for row in rows_of(i) if (row.method, row.figure) == (method, figure)] for i in items]
    return [row for row in some if row]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("figure", ["obj_iou", "func_iou"])
def test_means_are_those_of_the_rows(results: Results, method: str, figure: str) -> None:
    cell, by_image = results.cell(method, figure), values(method, figure)
    assert cell is not None
    assert cell.value == pytest.approx(np.mean(functools.reduce(operator.iadd, by_image, [])), abs=1e-12)
    assert cell.per_image == pytest.approx(np.mean([np.mean(some) for some in by_image]), abs=1e-12)
    assert (cell.n, cell.images) == (sum(map(len, by_image)), 40)


def test_intervals_are_of_images(results: Results) -> None:
    """Against a bootstrap that draws images one by one, with other random numbers."""
    by_image, generator = values("tam", "obj_iou"), np.random.default_rng(99)
    draws = []
    for _ in range(2000):
        chosen = [by_image[i] for i in generator.integers(0, len(by_image), len(by_image))]
        draws.append(np.mean(functools.reduce(operator.iadd, chosen, [])))
    low, high = np.percentile(draws, [2.5, 97.5])
    cell = results.cell("tam", "obj_iou")
    assert cell is not None
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=0.2 * (high - low))


def test_f1_is_of_the_pooled_means(results: Results) -> None:
    one, two, both = (results.cell("tam", name) for name in ("obj_iou", "func_iou", "f1_iou"))
    assert one is not None
    assert two is not None
    assert both is not None
    assert both.value == pytest.approx(2 * one.value * two.value / (one.value + two.value), abs=1e-12)
    assert both.low < both.value < both.high


def test_differences_are_paired(results: Results) -> None:
    cell, base = results.cell("tam", "obj_iou"), results.cell("cam", "obj_iou")
    assert cell is not None
    assert base is not None
    assert cell.difference == pytest.approx(cell.value - base.value, abs=1e-12)
    # The words' common noise cancels: the difference is surer than either value.
    assert cell.difference_high - cell.difference_low < 0.6 * (cell.high - cell.low)
    assert cell.difference_low < LEVELS["tam"] - LEVELS["cam"] < cell.difference_high
    assert math.isnan(base.difference)
    assert math.isnan(base.p)


def test_p_values_are_corrected_by_figure(results: Results) -> None:
    """Of the three compared methods two are candidates; the smallest p of 400 resamples is 2 / 401."""
    found = {method: results.cell(method, "obj_iou") for method in ("tam", "attention", "random")}
    least = 2 / 401
    assert {method: cell.p for method, cell in found.items() if cell} == pytest.approx(
        {"tam": 2 * least, "attention": 2 * least, "random": least}
    )


def test_no_difference_is_no_finding(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    store = Rows(tmp_path)
    for index in range(30):
        row = Row(index, f"i{index}", "cam", "plausibility", "obj_iou")
        store.write(
            [replace(row, value=float(generator.random())), replace(row, method="tam", value=float(generator.random()))]
        )
    cell = read_results([tmp_path], resamples=500).cell("tam", "obj_iou")
    assert cell is not None
    assert cell.difference_low < 0 < cell.difference_high
    assert cell.p > 0.05


def test_differences_are_of_the_images_that_both_have(tmp_path: Path) -> None:
    store = Rows(tmp_path)
    for index in range(6):
        row = Row(index, f"i{index}", "cam", "plausibility", "obj_iou", value=0.1 * index)
        store.write([row] if index < 3 else [row, replace(row, method="tam", value=0.1 * index + 0.05)])
    results = read_results([tmp_path], resamples=50)
    cell = results.cell("tam", "obj_iou")
    assert cell is not None
    assert cell.value == pytest.approx(0.45)
    assert cell.difference == pytest.approx(0.05)
    assert cell.difference_low == pytest.approx(0.05)
    assert "different numbers of images: Obj-IoU 3 to 6" in markdown(results)


def test_counts_weigh(tmp_path: Path) -> None:
    row = Row(0, "a", "tam", "x", "obj_iou", value=1.0, n=3)
    Rows(tmp_path).write([row, replace(row, value=0.0, n=1)])
    Rows(tmp_path).write([replace(row, item="b", index=1, value=0.5, n=4)])
    cell = read_results([tmp_path], resamples=10).cell("tam", "obj_iou")
    assert cell is not None
    assert (cell.value, cell.per_image, cell.n, cell.images) == (0.625, 0.625, 8, 2)


def test_shards_joined_are_one_run(folder: Path, tmp_path: Path) -> None:
    shards = [write_rows(tmp_path / str(part), range(part, 40, 3), curves=True) for part in range(3)]
    one = read_results([folder], resamples=50).as_json()
    for order in (shards, shards[::-1]):
        assert read_results(order, resamples=50).as_json() | {"folders": 0} == one | {"folders": 0}


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    shards = [write_rows(tmp_path / str(part), [part]) for part in range(2)]
    path = shards[1] / "evaluation.json"
    path.write_text(path.read_text().replace('"map"', '"answer"'))
    with pytest.raises(
        ValueError, match=r"output: expected folders .* same settings, got scale answer .* map before it"
    ):
        read_results(shards)


def test_errors_are_counted_and_values_that_are_none(tmp_path: Path) -> None:
    store = Rows(tmp_path)
    store.write([Row(0, "a", status="error", error="image: broken")])
    row = Row(1, "b", "tam", "plausibility", "obj_iou", value=0.5)
    store.write([row, replace(row, method="cam", figure="", value=math.nan, status="error", error="ValueError: x")])
    store.write(
        [replace(row, item="c", index=2, status="none", error="no mask"), replace(row, item="c", value=math.nan)]
    )
    results = read_results([tmp_path], resamples=10)
    assert (results.items, results.failed) == (3, 1)
    assert results.errors == {"cam plausibility: ValueError: x": 1, "image: broken": 1}
    assert results.examples == ["a: image: broken", "b: cam plausibility: ValueError: x"]
    assert results.nothing == {"plausibility: obj_iou is no number": 1, "plausibility: no mask": 1} or sum(
        results.nothing.values()
    )
    cell = results.cell("tam", "obj_iou")
    assert cell is not None
    assert cell.n == 1
    text = markdown(results)
    assert "Errors: 2; items that failed as a whole: 1 of 3." in text
    assert "- 1 x image: broken" in text


def test_curves_are_means_with_errors(results: Results) -> None:
    curve = next(curve for curve in results.curves if (curve.method, curve.figure) == ("tam", "insertion"))
    assert curve.mean == pytest.approx(0.5 + 0.7 * np.linspace(-0.5, 0.5, 9), abs=1e-6)
    assert curve.error == pytest.approx(np.zeros(9), abs=1e-6)
    assert curve.images == 40


def test_methods_and_figures_are_in_the_order_of_tables(results: Results) -> None:
    assert results.methods == ["tam", "cam", "attention", "random"]
    assert results.figures == ["obj_iou", "func_iou", "f1_iou", "insertion", "deletion"]
    assert [cell.figure for cell in results.answers] == ["rouge_l"]
    assert results.milliseconds["cam"] == pytest.approx(0.5)


def test_what_is_read_twice_is_the_same(folder: Path) -> None:
    assert read_results([folder], resamples=30) == read_results([folder], resamples=30)
    assert read_results([folder], resamples=30, seed=1).cells != read_results([folder], resamples=30).cells


def test_arguments_that_are_wrong(folder: Path) -> None:
    with pytest.raises(ValueError, match="resamples: expected at least 1, got 0"):
        read_results([folder], resamples=0)


# Tables


@pytest.mark.parametrize(
    ("value", "percent", "signed", "text"),
    [
        (0.4567, True, False, "45.7"),
        (0.4567, False, False, "0.457"),
        (-0.00001, True, True, "0.0"),
        (0.0, True, True, "0.0"),
        (0.012, True, True, "+1.2"),
        (-0.5, False, True, "-0.500"),
        (math.nan, True, False, "–"),
        (math.inf, False, False, "–"),
    ],
)
def test_values_as_tables_show_them(value: float, percent: bool, signed: bool, text: str) -> None:
    assert shown(value, Figure("x", "x", percent=percent), signed) == text


def test_the_best_is_by_the_direction_of_the_figure(results: Results) -> None:
    assert best(results, "obj_iou") == {"tam"}
    assert best(results, "insertion") == set(METHODS)  # equal as they are shown
    cells = [replace(cell, value=LEVELS[cell.method]) for cell in results.cells if cell.figure == "deletion"]
    assert best(replace(results, cells=cells), "deletion") == {"random"}


def rows_under(text: str, first: str) -> list[list[str]]:
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {first} "))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return [table[0], *table[2:]]


def test_markdown(results: Results) -> None:
    table = rows_under(markdown(results), "method")
    assert table[0] == ["method", "Obj-IoU ↑", "Func-IoU ↑", "F1-IoU ↑", "insertion ↑", "deletion ↓", "ms a token"]
    assert [row[0] for row in table[1:]] == ["`tam`", "`cam`", "`attention`", "`random`"]
    cell = results.cell("tam", "obj_iou")
    assert cell is not None
    assert table[1][1] == f"**{100 * cell.value:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]**"
    text = markdown(results, ["obj_iou"], intervals=False)
    assert rows_under(text, "method")[2][1] == f"{100 * results.cell('cam', 'obj_iou').value:.1f}"  # type: ignore[union-attr]
    assert "40 items" in text
    assert "ROUGE-L: 38.9 (40 answers)" in text
    assert "*" in text.partition("Differences to `cam`")[2]


def test_columns_that_there_are_not(results: Results) -> None:
    with pytest.raises(ValueError, match=r"figures: expected some of obj_iou, .*, got auroc"):
        markdown(results, ["auroc"])


def test_latex(results: Results) -> None:
    text = latex(replace(results, methods=["tam", "cam", "attention"]))
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(lines) == 4
    assert all(line.count(" & ") == 5 for line in lines)
    assert lines[0].startswith("method & Obj-IoU $\\uparrow$ & ")
    assert lines[1].startswith("tam & \\textbf{")
    odd = replace(results, methods=["a_b%&"], cells=[replace(results.cells[0], method="a_b%&")])
    assert "a\\_b\\%\\& & " in latex(odd, ["obj_iou"])


def test_csv_has_every_digit(results: Results) -> None:
    table = list(reader.DictReader(io.StringIO(csv(results))))
    assert len(table) == len(results.cells) + 1
    first = next(row for row in table if (row["method"], row["figure"]) == ("tam", "obj_iou"))
    cell = results.cell("tam", "obj_iou")
    assert cell is not None
    assert float(first["value"]) == cell.value
    assert float(first["difference_low"]) == cell.difference_low
    assert next(row for row in table if row["method"] == "cam")["difference"] == ""


@pytest.mark.long
def test_files(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = sorted(path.name for path in results.write(tmp_path))
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("insertion_deletion.png", "insertion_deletion.svg", "report.html", "results.json", "rows.parquet"),
        *("table.csv", "table.md", "table.tex"),
    ]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cells"][0]["method"] == "tam"
    assert found["reference"] == "cam"
    plain = replace(results, curves=[])
    before = {path.name: path.read_bytes() for path in plain.write(tmp_path)}
    assert {path.name: path.read_bytes() for path in plain.write(tmp_path)} == before
