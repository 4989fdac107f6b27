"""What the command writes and prints, and what it never replaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_cli import FakeExplainer, assert_fails, run, save_image
from explanations import make_explanation
from PIL import Image

import tam_fast
from tam_fast.explanation import Explanation, load


def test_explain_writes_and_prints(explainer: FakeExplainer, photo: Path) -> None:
    result = run("explain", photo, "-p", "What is it?", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["photo.json", "photo.png", "photo.safetensors"]
    lines = result.stdout.splitlines()
    assert "photo.jpg" in lines[0]
    assert lines[1] == "A red circle."
    assert lines[2].split()[:2] == ["word", "strength"]
    e = load("out/photo")
    for line, word in zip(lines[3:6], e.words, strict=True):
        assert line.split()[:2] == [word.text, f"{word.strength:.2f}"]
        peak = e.peak(word)
        assert line.split()[2] == f"{peak.row},{peak.column}"
        assert line.split()[3] == f"{int(peak.x * 48)},{int(peak.y * 32)}"
        assert line.split()[4] == f"{float(e.maps.scale[word.start]):.2f}"
        assert f"{e.tokens[word.start].strip()} 0.75" in line
    assert "loading the embedded model" in result.stderr
    assert "[1/1]" in result.stderr
    with Image.open("out/photo.png") as sheet:
        assert sheet.tobytes() == e.sheet().tobytes()
    assert explainer.calls[0]["prompt"] == "What is it?"


def test_json_is_one_document(explainer: FakeExplainer, photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    explain = explainer.explain

    def noisy(*arguments: Any, **options: Any) -> Explanation:
        print("a library prints")
        return explain(*arguments, **options)

    explainer.explain = noisy  # type: ignore[method-assign]
    result = run("explain", photo, "missing.jpg", "--json", "-o", "out")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["tam_fast"] == tam_fast.__version__
    (entry,) = document["results"]
    e = load("out/photo")
    assert entry["image"] == str(photo)
    assert (entry["answer"], entry["prompt"], entry["model"]) == (e.text, e.prompt, e.model)
    assert [word["word"] for word in entry["words"]] == ["A", "red", "circle"]
    assert entry["words"][2]["tokens"] == [2, 4]
    assert entry["words"][2]["strength"] == e.words[2].strength
    assert entry["words"][2]["peak"]["row"] == e.peak("circle").row
    assert [token["token"] for token in entry["tokens"]] == e.tokens
    assert [token["strength"] for token in entry["tokens"]] == e.visual_strength.tolist()
    assert entry["tokens"][0]["candidates"][0] == {"token": "A", "id": 7, "probability": 0.75}
    assert entry["grids"] == [{"height": 3, "width": 4, "source": 0, "box": [0.0, 0.0, 1.0, 1.0]}]
    assert entry["files"] == {
        "sheet": str(Path("out/photo.png")),
        "arrays": str(Path("out/photo.safetensors")),
        "json": str(Path("out/photo.json")),
    }
    (error,) = document["errors"]
    assert (error["image"], error["code"]) == ("missing.jpg", 3)
    assert "a library prints" in result.stderr


def test_json_of_a_flat_map_has_no_peak(explainer: FakeExplainer, photo: Path) -> None:
    explainer.explain = lambda images, **_: make_explanation(  # type: ignore[method-assign, misc]
        ["a"], ((3, 4),), maps=torch.zeros(1, 12), images=[images]
    )
    document = json.loads(run("explain", photo, "--json").stdout)
    assert document["results"][0]["words"][0]["peak"] is None
    lines = run("explain", photo).stdout.splitlines()
    assert lines[3].split()[:4] == ["a", "0.00", "-", "-"]


def test_earlier_results_are_replaced_but_nothing_else(explainer: FakeExplainer, photo: Path) -> None:
    assert run("explain", photo, "-o", "out").exit_code == 0
    assert run("explain", photo, "-o", "out").exit_code == 0
    Path("out/photo.json").write_text('{"mine": true}')
    assert_fails(run("explain", photo, "-o", "out"), 3, "exists and is not of an earlier run")
    assert Path("out/photo.json").read_text() == '{"mine": true}'
    assert run("explain", photo, "-o", "out", "--force").exit_code == 0
    assert load("out/photo").text == "A red circle."


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_input_is_never_replaced(explainer: FakeExplainer, tmp_path: Path, force: tuple[str, ...]) -> None:
    path = save_image(tmp_path / "x.png")
    before = path.read_bytes()
    assert_fails(run("explain", path, "-o", ".", *force), 3, "would replace an input")
    assert path.read_bytes() == before
    # Not by the result for another image either.
    other = tmp_path / "sub"
    other.mkdir()
    result = run("explain", save_image(other / "x.jpg"), path, "-o", ".", "-q", *force)
    assert result.exit_code == 3
    assert path.read_bytes() == before


def test_output_that_cannot_be_written(explainer: FakeExplainer, photo: Path) -> None:
    Path("file").write_text("x")
    assert_fails(run("explain", photo, "-o", "file"), 3, "--output: cannot make the folder 'file'")
    assert_fails(run("explain", photo, "-o", "file/below"), 3, "--output: cannot make the folder")


def test_full_disk(explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Explanation, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Explanation, "save", full)
    assert_fails(run("explain", photo), 3, "the results cannot be written: [Errno 28] No space left on device")
