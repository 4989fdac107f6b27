"""What the command writes and prints, and what it never replaces."""

from __future__ import annotations

import json
import os
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
    suffixes = ["html", "json", "png", "safetensors"]
    assert sorted(path.name for path in Path("out").iterdir()) == [f"photo.{suffix}" for suffix in suffixes]
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
        "page": str(Path("out/photo.html")),
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


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("at", range(4))
def test_full_disk(explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The four files of the earlier run stay, whichever of the new ones does not fit."""
    assert run("explain", photo, "-q", "-o", "out").exit_code == 0
    before = _content(Path("out"))
    explainer.tokens = ["Another", " answer"]
    calls = iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == at:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = run("explain", photo, "-o", "out")
    name = ("photo.safetensors", "photo.png", "photo.html", "photo.json")[at]
    assert_fails(result, 3, f"the results cannot be written: {Path('out') / name}: No space left on device")
    assert _content(Path("out")) == before
    assert run("explain", photo, "-q", "-o", "out").exit_code == 0
    assert load("out/photo").text == "Another answer"
    assert len(_content(Path("out"))) == 4


def test_an_error_of_the_system_is_a_file_s(explainer: FakeExplainer, photo: Path) -> None:
    explainer.error = PermissionError(13, "Permission denied", "/some/file")
    assert_fails(run("explain", photo), 3, "photo.jpg: /some/file: Permission denied")


def test_a_folder_that_takes_no_files(explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_fails(run("explain", photo, "-o", "out"), 3, "--output: cannot write into the folder 'out'")
    assert explainer.calls == []


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["too large", "damaged", "folder", "soft link", "hard link", "linked folder", "stdin"])
def test_no_input_is_replaced_however_it_is_named(
    explainer: FakeExplainer, tmp_path: Path, kind: str, force: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the result for another image of the same name, in the folder where the input lies."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "other").mkdir()
    small = save_image(tmp_path / "sub" / "a.jpg")
    mine = save_image(tmp_path / "a.png", (90, 90))
    named: Path | str = mine
    if kind == "damaged":
        mine.write_bytes(mine.read_bytes()[:300])
    elif kind == "folder":
        named = tmp_path
    elif kind == "soft link":
        named = tmp_path / "other" / "b.png"
        named.symlink_to(mine)
    elif kind == "hard link":
        named = tmp_path / "other" / "b.png"
        named.hardlink_to(mine)
    elif kind == "linked folder":
        (tmp_path / "link").symlink_to("other", target_is_directory=True)
        named = tmp_path / "link" / ".." / "a.png"
    options: list[object] = ["-o", tmp_path, "-q", "--max-pixels", "2000", *force]
    before = mine.read_bytes()
    with mine.open("rb") as file:
        if kind == "stdin":
            status = os.fstat
            monkeypatch.setattr(os, "fstat", lambda handle: status(file.fileno() if handle == 0 else handle))
            result = run("explain", "-", small, *options, input=before)
        else:
            result = run("explain", named, small, *options)
    assert result.exit_code == 3
    assert f"{tmp_path / 'a.png'} would replace an input" in result.stderr
    assert mine.read_bytes() == before
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_link_that_was_named_stays_though_it_leads_nowhere(
    explainer: FakeExplainer, tmp_path: Path, force: tuple[str, ...]
) -> None:
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "gone.png")
    (tmp_path / "sub").mkdir()
    save_image(tmp_path / "sub" / "a.png")
    result = run("explain", link, tmp_path / "sub" / "a.png", "-o", tmp_path, *force)
    assert result.exit_code == 3
    assert "would replace an input" in result.stderr
    assert link.is_symlink()
    assert not link.exists()


def test_a_model_s_files_are_inputs(explainer: FakeExplainer, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    before = _content(model)
    for name in ("config.jpg", "model.jpg"):
        image = save_image(tmp_path / name)
        for force in ((), ("--force",)):
            assert_fails(run("explain", image, "-m", model, "-o", model, *force), 3, "would replace an input")
    assert _content(model) == before
    other = save_image(tmp_path / "other.jpg")
    for _ in range(2):
        assert run("explain", other, "-m", model, "-o", model, "-q").exit_code == 0
    assert _content(model).items() >= before.items()


def test_the_document_s_own_file_is_not_replaced(
    explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``tam-fast explain photo.jpg --json -o out > out/photo.json``."""
    Path("out").mkdir()
    status = os.fstat
    with Path("out/photo.json").open("w") as file:
        monkeypatch.setattr(os, "fstat", lambda handle: status(file.fileno() if handle == 1 else handle))
        assert_fails(run("explain", photo, "-o", "out", "--force"), 3, "would replace an input")


@pytest.mark.parametrize("suffix", ["png", "safetensors", "json"])
def test_each_file_is_told_by_its_own_content(explainer: FakeExplainer, photo: Path, suffix: str) -> None:
    """A picture of the user's beside an explanation that was saved from Python is not of an earlier run."""
    assert run("explain", photo, "-q", "-o", "out").exit_code == 0
    mine = Path(f"out/photo.{suffix}")
    save_image(Path("out/x.png")).replace(mine)
    before = _content(Path("out"))
    message = f"{mine} exists and is not of an earlier run; choose another folder with -o, or --force"
    assert_fails(run("explain", photo, "-o", "out"), 3, message)
    assert _content(Path("out")) == before
    assert run("explain", photo, "-q", "-o", "out", "--force").exit_code == 0
    mine.unlink()
    assert run("explain", photo, "-q", "-o", "out").exit_code == 0
    mine.unlink()
    mine.mkdir()
    message = f"{mine} exists and is no file; choose another folder with -o"
    assert_fails(run("explain", photo, "-o", "out", "--force"), 3, message)


def test_a_file_that_comes_meanwhile_is_not_replaced(explainer: FakeExplainer, photo: Path) -> None:
    explain = explainer.explain

    def slow(*arguments: Any, **options: Any) -> Explanation:
        Path("out/photo.png").write_text("mine")
        return explain(*arguments, **options)

    explainer.explain = slow  # type: ignore[method-assign]
    assert_fails(run("explain", photo, "-o", "out"), 3, "exists and is not of an earlier run")
    assert _content(Path("out")) == {"photo.png": b"mine"}


@pytest.mark.parametrize("letter", ["\u732b", *(pytest.param(x, marks=pytest.mark.long) for x in ("n", "\udcff"))])
def test_long_names_are_shortened_and_told_apart(explainer: FakeExplainer, tmp_path: Path, letter: str) -> None:
    (tmp_path / "sub").mkdir()
    long = letter * (251 // len(os.fsencode(letter)))
    # The last differs in what is cut.
    names = [f"{long}.jpg", f"sub/{long}.jpg", f"{long[:-1]}z.jpg"]
    data = save_image(tmp_path / "x.jpg").read_bytes()
    for name in names:
        (tmp_path / name).write_bytes(data)
    for _ in range(2):
        result = run("explain", *names, "-q", "--json", "-o", "out")
        assert result.exit_code == 0, result.stderr
        files = [entry["files"]["json"] for entry in json.loads(result.stdout)["results"]]
        assert len(set(files)) == 3
        assert len(_content(Path("out"))) == 12
        assert all(load(file).text == "A red circle." for file in files)
    # Where the sentence is printed, a byte that is no text does not disturb.
    assert run("explain", names[0], "-o", "out").exit_code == 0


def test_names_that_some_file_systems_do_not_tell_apart(explainer: FakeExplainer, tmp_path: Path) -> None:
    names = [save_image(tmp_path / f"{name}.jpg") for name in ("\u00e9", "e\u0301", "E\u0301")]
    assert run("explain", *names, "-q", "-o", "out").exit_code == 0
    assert len(list(Path("out").glob("*.json"))) == 3
    assert len([path for path in Path("out").glob("*.json") if path.stem[-2:] in ("-2", "-3")]) == 2


def test_a_path_cannot_steer_the_terminal(explainer: FakeExplainer, tmp_path: Path) -> None:
    result = run("explain", save_image(tmp_path / "\x1b[31mx.png"))
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout + result.stderr
