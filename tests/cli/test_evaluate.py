"""``tam-fast evaluate``: options, what is refused, what is printed, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from conftest_cli import assert_fails, python, run
from measured import write_rows

from tam_fast.explain import Explainer

DATA = "demo://scenes?n=3&seed=11"


@pytest.fixture
def loaded(demo_explainer: Explainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Explainer:
    """The embedded model, loaded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tam_fast.cli.evaluate.load_explainer", lambda model, device, dtype, debug: demo_explainer)
    return demo_explainer


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """No model at all; what is asked of one is kept."""
    asked: list[Any] = []

    def load(*arguments: Any) -> Any:
        asked.append(arguments)
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tam_fast.cli.evaluate.load_explainer", load)
    return asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((DATA, "--methods", "magic"), "--methods: expected one of tam, cam"),
        ((DATA, "--methods", "cam+magic"), "--methods: expected one of eci, eci_mean"),
        ((DATA, "--methods", "attention@joint"), "--methods: expected '@joint' with cam alone"),
        ((DATA, "--methods", "cam@global"), "--methods: expected one of map, answer, joint behind '@'"),
        ((DATA, "--figures", "beauty"), "--figures: expected some of plausibility, localisation"),
        ((DATA, "--figures", ","), "--figures: expected some of plausibility"),
        ((DATA, "--shard", "4/4"), "--shard: expected I/N with 0 <= I < N, got '4/4'"),
        ((DATA, "--shard", "1"), "--shard: expected I/N"),
        ((DATA, "--method-option", "rise.samples"), "--method-option: expected METHOD.NAME=VALUE, got 'rise.samples'"),
        ((DATA, "--method-option", "samples=2"), "--method-option: expected METHOD.NAME=VALUE, got 'samples=2'"),
        ((DATA, "--method-option", "magic.samples=2"), "--method-option: expected a method, got 'magic'"),
        ((DATA, "--method-option", "cam.samples=2"), "--method-option: expected none with cam, got 'samples'"),
        ((DATA, "--method-option", "rise.samples=x"), "samples: expected a whole number, got 'x'"),
        ((DATA, "--column", "image"), "--column: expected NAME=COLUMN, got 'image'"),
        ((DATA, "again"), "DATA: expected one data set without --report, got 2"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(unloaded: list[Any], options: tuple[str, ...], message: str) -> None:
    assert_fails(run("evaluate", *options), 2, message)
    assert unloaded == []
    assert not Path("tam-fast-evaluation").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("demo://scenes?n=0",), 2, "DATA: n: expected at least 1, got 0"),
        (("nowhere",), 3, "nowhere"),
        ((DATA, "--limit", "0"), 2, "--limit: expected at least 1, got 0"),
        (
            (DATA, "--method-option", "rise.samples=8"),
            2,
            "--method-option: expected options of methods that are asked for",
        ),
        ((DATA, "--layout", "magic"), 2, "--layout: expected one of coco"),
    ],
)
def test_what_is_refused_before_anything_is_run(loaded: Explainer, options: Any, code: int, message: str) -> None:
    assert_fails(run("evaluate", "-q", *options), code, message)


def test_a_table_of_a_run(loaded: Explainer) -> None:
    result = run("evaluate", DATA, "--methods", "tam,cam@joint", "--figures", "localisation", "-o", "out")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["method", "pointing"]
    assert [line.split()[0] for line in lines[1:7]] == ["tam", "cam", "cam@joint", "random", "centre", "uniform"]
    assert "3 items" in lines
    for name in ("report.html", "table.md", "table.tex", "table.csv", "rows.parquet", "evaluation.json"):
        assert (Path("out") / name).is_file()
    said = result.stderr
    assert "an item costs" in said
    assert "tam: 1 forward" in said
    assert said.index("an item costs") < said.index("measuring: 3 of 3")


def test_json_is_one_document_and_quiet_is_quiet(loaded: Explainer) -> None:
    first = run("evaluate", DATA, "--figures", "pointing", "-o", "out", "--json", "-q")
    found = json.loads(first.stdout)
    assert first.stderr == ""
    assert found["items"] == 3
    assert found["counts"] == {"items": 3, "measured": 3, "known": 0, "failed": 0, "errors": 0}
    # A second run measures nothing anew, and --report says the same.
    again = json.loads(run("evaluate", DATA, "--figures", "pointing", "-o", "out", "--json", "-q").stdout)
    assert again["counts"] == {"items": 3, "measured": 0, "known": 3, "failed": 0, "errors": 0}
    report = json.loads(run("evaluate", "out", "--report", "--json").stdout)
    assert {**again, "counts": None} == report


@pytest.mark.long
def test_another_scale_needs_another_folder(loaded: Explainer) -> None:
    common = ("evaluate", DATA, "--figures", "pointing", "--limit", "1", "-q", "-o", "out")
    assert run(*common).exit_code == 0
    assert_fails(run(*common, "--scale", "answer"), 2, "scale: map, not answer")
    assert_fails(run(*common, "--seed", "3"), 2, "seed: 0, not 3")


def test_report_of_shards(tmp_path: Path) -> None:
    shards = [write_rows(tmp_path / str(part), range(part, 6, 2)) for part in range(2)]
    whole = write_rows(tmp_path / "whole", range(6))
    out = tmp_path / "joined"
    result = run("evaluate", *shards, "--report", "-o", out, "--resamples", "50")
    assert result.exit_code == 0, result.stderr
    run("evaluate", whole, "--report", "--resamples", "50")
    for name in ("table.md", "table.csv", "table.tex"):
        assert (out / name).read_text() == (whole / name).read_text()
    assert_fails(run("evaluate", tmp_path / "nothing", "--report"), 2, "--output: expected a folder with rows")


def test_tables_are_made_anew_from_rows_alone(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "one", range(4))
    run("evaluate", folder, "--report")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for path in folder.iterdir():
        if path.name not in ("evaluation.json", "rows"):
            path.unlink()
    run("evaluate", folder, "--report")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_some_errors_are_told_and_do_not_fail(loaded: Explainer, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    from tam_fast.demo import sample_scenes

    shutil.copy(sample_scenes()[0], pictures / "a.png")
    (pictures / "b.png").write_bytes(b"no picture")
    result = run("evaluate", pictures, "--figures", "attention", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "2 items, 1 failed, 1 errors" in result.stdout
    assert "b" in result.stdout.partition("1 errors")[2].splitlines()[1]


@pytest.mark.long
def test_where_nothing_works_the_command_fails(loaded: Explainer, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "b.png").write_bytes(b"no picture")
    result = run("evaluate", pictures, "--figures", "attention", "-o", "out", "-q")
    assert result.exit_code == 1
    assert "expected an item that can be measured, got none of 1" in result.stderr


@pytest.mark.long
def test_what_is_not_there_is_missed_before_anything_is_run(
    loaded: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NLTK's data, of pictures whose words nobody knows."""
    from tam_fast.evaluation import tagging

    monkeypatch.setattr(tagging, "_held", {})
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "none")])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "b.png").write_bytes(b"no picture")
    result = run("evaluate", pictures, "--figures", "pointing", "-o", "out", "-q")
    assert result.exit_code == 3
    assert "NLTK_DATA: expected a folder" in result.stderr
    assert not Path("out").exists()


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from tam_fast.cli.app import app\n"
        "try: app(['evaluate', '--help'], prog_name='tam-fast')\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'pyarrow', 'nltk', 'cv2', 'matplotlib', 'transformers', 'jinja2')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
