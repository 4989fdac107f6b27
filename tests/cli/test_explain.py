"""The command ``explain``: its options, several images, answers of real models."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_cli import FakeExplainer, assert_fails, load_model, run, save_image
from PIL import Image

from tam_fast.cli import explain
from tam_fast.demo import sample_scenes
from tam_fast.explain import Explainer
from tam_fast.explanation import load


def test_explain_passes_its_options_on(explainer: FakeExplainer, photo: Path) -> None:
    assert run("explain", photo).exit_code == 0
    expected = {
        "prompt": "Describe this image.",
        "compat": None,
        "kernel_size": 3,
        "max_new_tokens": 128,
        "do_sample": False,
    }
    assert {name: explainer.calls[0][name] for name in expected} == expected
    assert explainer.calls[0].get("answer") is None
    assert Path("tam-fast-out/photo.png").exists()
    options = (
        "--answer",
        "A cat.",
        "--compat",
        "paper",
        "--kernel-size",
        "5",
        "--max-new-tokens",
        "7",
        "--cmap",
        "jet",
    )
    assert run("explain", photo, *options).exit_code == 0
    expected = {"answer": "A cat.", "compat": "paper", "kernel_size": 5, "max_new_tokens": 7}
    assert {name: explainer.calls[1][name] for name in expected} == expected
    assert "do_sample" not in explainer.calls[1]
    with Image.open("tam-fast-out/photo.png") as sheet:
        assert sheet.tobytes() == load("tam-fast-out/photo").sheet(cmap="jet").tobytes()


def test_quiet_prints_nothing(explainer: FakeExplainer, photo: Path) -> None:
    result = run("explain", photo, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert Path("tam-fast-out/photo.png").exists()
    result = run("explain", photo, "-q", "--json")
    assert json.loads(result.stdout)["errors"] == []
    assert result.stderr == ""


def test_images_are_explained_one_by_one(explainer: FakeExplainer, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    names = [save_image(tmp_path / "x.png"), save_image(tmp_path / "a" / "X.jpg"), save_image(tmp_path / "y.bmp")]
    result = run("explain", *names)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("tam-fast-out").glob("*.png")) == ["X-2.png", "x.png", "y.png"]
    assert [len(call["images"]) for call in explainer.calls] == [1, 1, 1]
    assert result.stdout.count("A red circle.") == 3


def test_together(explainer: FakeExplainer, tmp_path: Path) -> None:
    names = [save_image(tmp_path / "x.png"), save_image(tmp_path / "y.png", (20, 30))]
    result = run("explain", *names, "--together")
    assert result.exit_code == 0, result.stderr
    (call,) = explainer.calls
    assert [image.size for image in call["images"]] == [(48, 32), (20, 30)]
    assert len(load("tam-fast-out/together").images) == 2
    assert json.loads(run("explain", *names, "--together", "--json").stdout)["results"][0]["image"] == list(
        map(str, names)
    )
    assert_fails(run("explain", names[0], "none.png", "--together"), 3, "none.png: no such file")
    assert len(explainer.calls) == 2


def test_one_bad_image_does_not_stop_the_others(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:-400])
    result = run("explain", "none.jpg", "half.jpg", photo)
    assert result.exit_code == 3
    assert result.stderr.count("tam-fast: error: ") == 2
    assert result.stdout.count("A red circle.") == 1
    assert Path("tam-fast-out/photo.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", ""), "--prompt: expected some text, got ''"),
        (("-p", " \n"), r"--prompt: expected some text, got ' \n'"),
        (("--answer", ""), "--answer: expected some text, got ''"),
        (("--model", " "), "--model: expected a model folder or a model hub id, got ' '"),
        (("--max-new-tokens", "0"), "--max-new-tokens: expected at least 1, got 0"),
        (("--max-pixels", "-1"), "--max-pixels: expected at least 1, got -1"),
        (("--kernel-size", "4"), "--kernel-size: expected an odd number from 1 to 15, got 4"),
        (("--kernel-size", "17"), "--kernel-size: expected an odd number from 1 to 15, got 17"),
        (("--cmap", "nosuch"), "--cmap: expected inferno, viridis, jet"),
    ],
)
def test_wrong_values(explainer: FakeExplainer, photo: Path, options: tuple[str, ...], message: str) -> None:
    assert_fails(run("explain", photo, *options), 2, message)
    assert not Path("tam-fast-out").exists()
    assert explainer.calls == []


def test_model_that_refuses_the_input(explainer: FakeExplainer, photo: Path) -> None:
    explainer.error = ValueError("images: expected an aspect ratio\nbelow 200")
    assert_fails(run("explain", photo), 4, "photo.jpg: images: expected an aspect ratio below 200")


def test_answer_is_shown_as_it_grows(
    models: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal; the maps are the same."""
    monkeypatch.chdir(tmp_path)
    options = ("--model", models / "qwen", "--max-new-tokens", "5")
    assert run("explain", photo, *options, "-o", "plain").exit_code == 0

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    job_runs = explain._run

    def on_terminal(*arguments: Any) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            return job_runs(*arguments)

    monkeypatch.setattr(explain, "_run", on_terminal)
    result = run("explain", photo, *options, "-o", "watched")
    assert result.exit_code == 0, result.stderr
    shown = terminal.getvalue()
    plain, watched = load("plain/photo"), load("watched/photo")
    assert plain.token_ids == watched.token_ids
    assert torch.equal(plain.maps.maps, watched.maps.maps)
    assert shown.count("\r\x1b[Ktam-fast: token ") == len(plain)
    assert shown.endswith("\r\x1b[K")


def test_given_answer_with_two_images(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [save_image(tmp_path / "x.png", (60, 90)), save_image(tmp_path / "y.png", (120, 60))]
    options = ("--answer", "A dog and a cat sit.", "--together", "--dtype", "float32", "--device", "cpu")
    result = run("explain", *names, "--model", models / "qwen", *options)
    assert result.exit_code == 0, result.stderr
    e = load("tam-fast-out/together")
    assert e.text == "A dog and a cat sit."
    assert [word.text for word in e.words] == ["A", "dog", "and", "a", "cat", "sit"]
    assert isinstance(e["dog"], list)
    assert [grid.source for grid in e.layout.grids] == [0, 1]
    assert [image.size for image in e.images] == [(60, 90), (120, 60)]
    lines = result.stdout.splitlines()
    assert lines[1] == e.text
    assert all(":" in line.split()[2] for line in lines[3:9] if line.split()[2] != "-")


@pytest.mark.parametrize("compat", ["official", "paper"])
def test_compat_of_a_model(
    models: Path, compat: str, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--answer", "The dog looks.", "--compat", compat, "-q")
    result = run("explain", photo, "--model", models / "qwen", *options)
    assert result.exit_code == 0, result.stderr
    with Image.open(photo) as image:
        made = Explainer(*load_model(models / "qwen")).explain(
            image.convert("RGB"), answer="The dog looks.", compat=compat
        )
    assert torch.equal(made.maps.maps.nan_to_num(), load("tam-fast-out/photo").maps.maps.nan_to_num())


def test_image_that_the_processor_refuses(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_image(tmp_path / "line.png", (900, 2))
    assert_fails(run("explain", path, "--model", models / "qwen"), 4, "line.png: ")


def test_embedded_model_explains_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a first run of the command does: no argument, no network."""
    monkeypatch.chdir(tmp_path)
    result = run("explain")
    assert result.exit_code == 0, result.stderr
    sample = sample_scenes()[0]
    e = load(Path("tam-fast-out") / sample.stem)
    lines = result.stdout.splitlines()
    assert str(sample) in lines[0]
    assert lines[1] == e.text
    assert [line.split()[0] for line in lines[3 : 3 + len(e.words)]] == [word.text for word in e.words]
    # A caption of coloured shapes, in which some word is seen rather than guessed.
    assert len(e.words) >= 5
    assert max(word.strength for word in e.words) > 0.5
    assert all(len(step) == 3 for step in e.candidates)
    with Image.open(Path("tam-fast-out") / f"{sample.stem}.png") as sheet:
        assert sheet.width == 1600


def test_embedded_model_takes_its_own_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sample = str(sample_scenes()[-1])
    assert run("explain", sample, "-q", "-o", "own").exit_code == 0
    own = load(Path("own") / Path(sample).stem)
    assert run("explain", sample, "-q", "-o", "given", "--answer", own.text).exit_code == 0
    given = load(Path("given") / Path(sample).stem)
    assert given.token_ids == own.token_ids
    assert float((given.maps.maps - own.maps.maps).abs().max()) < 1e-3
