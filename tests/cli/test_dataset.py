"""``tam-fast dataset``: options, exit codes, what it prints; and with the embedded model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from conftest_cli import assert_fails, run
from data_sets import Canned, write

from tam_fast.dataset import open_dataset
from tam_fast.demo import sample_scenes
from tam_fast.explain import Explainer

pytest.importorskip("pyarrow")


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Canned:
    monkeypatch.chdir(tmp_path)
    explainer = Canned()
    monkeypatch.setattr("tam_fast.cli.dataset.load_explainer", lambda *_: explainer)
    monkeypatch.setattr("tam_fast.dataset.runs.spec_of", lambda *_: _Spec(explainer))
    monkeypatch.setattr("tam_fast.dataset.runs.described", lambda _: {"name": "canned"})
    return explainer


class _Spec:
    name = device = None
    dtype = "auto"

    def __init__(self, explainer: Canned) -> None:
        self.explainer = explainer

    def load(self) -> Canned:
        return self.explainer


def test_a_folder_of_images(canned: Canned, tmp_path: Path) -> None:
    write(tmp_path / "in", "images", 5)
    result = run("dataset", "in", "-o", "out", "--shard-rows", 2)
    assert result.exit_code == 0
    assert result.stdout.startswith("5 of 5 rows in out, 5 of them now, in ")
    assert len(open_dataset("out")) == 5
    again = run("dataset", "in", "-o", "out", "--shard-rows", 2, "--json")
    assert (again.exit_code, json.loads(again.stdout)["explained"]) == (0, 0)
    assert run("dataset", "in", "-o", "out", "-q").stdout == ""


def test_columns_and_lines_of_json(canned: Canned, tmp_path: Path) -> None:
    write(tmp_path / "in", "jsonl", 5)
    options = ("--id", "name", "--image", "picture", "-p", "question", "--answer", "said")
    result = run("dataset", "in/rows.jsonl", "-o", "out", *options, "--batch-size", 2, "--json")
    assert result.exit_code == 0
    *told, report = (json.loads(line) for line in result.stdout.splitlines())
    assert [line["rows"] for line in told] == [2, 4, 5]
    assert all(line["total"] == 5 and line["errors"] == 0 for line in told)
    assert report["done"] == 5
    assert open_dataset("out").ids == [f"row {k}" for k in range(5)]
    assert sorted(prompt for batch in canned.batches for prompt in batch) == [f"What is {k}?" for k in range(5)]


def test_error_rows_are_exit_code_5_on_every_run(canned: Canned, tmp_path: Path) -> None:
    given = write(tmp_path / "in", "images", 3)
    canned.fault = lambda requests: (_ for _ in ()).throw(ValueError("requests[0]: images: broken"))
    for _ in range(2):
        result = run("dataset", given, "-o", "out")
        assert result.exit_code == 5
        assert "3 error rows (--retry-errors explains them anew)" in result.stdout
    canned.fault = lambda _: None
    assert run("dataset", given, "-o", "out", "--retry-errors").exit_code == 0
    canned.fault = lambda requests: (_ for _ in ()).throw(ValueError("requests[0]: images: broken"))
    assert_fails(run("dataset", given, "-o", "other", "--max-errors", 1), 1, "expected at most 1 error rows")


def test_one_row_is_shown(canned: Canned, tmp_path: Path) -> None:
    given = write(tmp_path / "in", "images", 2)
    (given / "bad.png").symlink_to("/etc/passwd")
    run("dataset", given, "-o", "out")
    shown = run("dataset", "out", "--show", "0001.png")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == "0001.png: ok"
    assert "circle" in shown.stdout
    record = json.loads(run("dataset", "out", "--show", "0001.png", "--json").stdout)
    assert record["tokens"] == open_dataset("out")["0001.png"].tokens
    assert "inside the input's folder" in run("dataset", "out", "--show", "bad.png").stdout
    assert_fails(run("dataset", "out", "--show", "nothing"), 2, "--show: 'nothing' is none of the 3 rows")
    assert_fails(run("dataset", "in", "--show", "x"), 3, "expected a folder that `tam-fast dataset` wrote")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (("in",), 2, "--output: expected a folder"),
        (("missing", "-o", "out"), 3, "input: expected a file or a folder"),
        (("in", "-o", "out", "--maps", "all"), 2, "maps: expected tokens, words, none or top:K"),
        (("in", "-o", "out", "--id", "name"), 3, "id: expected none with a folder of images"),
        (("in", "-o", "out", "--workers", "2"), 2, "--workers: expected none without --engine ray"),
        (("in", "-o", "in", "-q"), 3, "output: expected an empty folder"),
        (("in", "-o", "out", "--batch-size", "0"), 2, "batch_size: expected a whole number"),
    ],
)
def test_wrong_usage(canned: Canned, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    write(tmp_path / "in", "images", 2)
    assert_fails(run("dataset", *arguments), code, message)


def test_another_configuration(canned: Canned, tmp_path: Path) -> None:
    write(tmp_path / "in", "images", 2)
    run("dataset", "in", "-o", "out")
    assert_fails(run("dataset", "in", "-o", "out", "--maps", "none"), 3, 'maps: "tokens", now "none"')
    assert run("dataset", "in", "-o", "out", "--maps", "none", "--overwrite").exit_code == 0


def test_an_interrupt_ends_the_part_at_work(canned: Canned, tmp_path: Path) -> None:
    write(tmp_path / "in", "images", 9)
    canned.fault = lambda _: os.kill(os.getpid(), signal.SIGINT) if len(canned.batches) == 1 else None
    before = signal.getsignal(signal.SIGINT)
    result = run("dataset", "in", "-o", "out", "--shard-rows", 4, "--batch-size", 2)
    assert result.exit_code == 1
    assert result.stdout.startswith("4 of 9 rows in out")
    assert "run the same command again to go on" in result.stdout
    assert "once more stops at once" in result.stderr
    assert signal.getsignal(signal.SIGINT) is before
    canned.fault = lambda _: None
    assert run("dataset", "in", "-o", "out", "--shard-rows", 4).stdout.startswith("9 of 9 rows in out, 5 of them now")


def test_rows_of_the_embedded_model_are_its_explanations(
    demo_explainer: Explainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tam_fast.cli.dataset.load_explainer", lambda *_: demo_explainer)
    folder = sample_scenes()[0].parent
    result = run("dataset", folder, "-o", tmp_path / "out", "--batch-size", 3)
    assert result.exit_code == 0
    opened = open_dataset(tmp_path / "out")
    assert opened.ids == [path.name for path in sample_scenes()]
    for path in sample_scenes()[:2]:
        e, expected = opened[path.name], demo_explainer.explain(path, "Describe this image.")
        assert (e.token_ids, e.text, e.layout) == (expected.token_ids, expected.text, expected.layout)
        levels = (expected.maps.maps * 255).floor().int()
        assert int(((e.maps.maps * 255).round().int() - levels).abs().max()) <= 1
