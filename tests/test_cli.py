"""The command: results, options, and every way in which it can fail."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import conftest_models
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_explanation import make_explanation
from typer.testing import CliRunner, Result

import tam_fast
from tam_fast import cli
from tam_fast.demo import sample_scenes
from tam_fast.explainer import Explainer
from tam_fast.explanation import Explanation, load

REPOSITORY = Path(tam_fast.__file__).parents[1]


class FakeExplainer:
    """Stands for a loaded model: answers at once, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.tokens = ["A", " red", " cir", "cle", "."]

    def explain(self, images: Any, **options: Any) -> Explanation:
        if self.error is not None:
            raise self.error
        images = images if isinstance(images, list) else [images]
        self.calls.append({"images": images, **options})
        count = len(images)
        return make_explanation(self.tokens, ((3, 4),) * count, sources=range(count), images=images)


@pytest.fixture
def explainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeExplainer:
    monkeypatch.chdir(tmp_path)
    fake = FakeExplainer()
    monkeypatch.setattr(cli, "_load_explainer", lambda job, debug: fake)
    return fake


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return _save(tmp_path / "photo.jpg")


def _save(path: Path, size: tuple[int, int] = (48, 32), mode: str = "RGB", **options: Any) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="tam-fast", **options)


def assert_fails(result: Result, code: int, message: str) -> None:
    """One line on stderr that says `message`, nothing on stdout, no traceback."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("tam-fast:  ")]
    assert result.exit_code == code, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("tam-fast: error: ")
    assert message in lines[0]
    assert result.stdout == ""


# What it writes and prints ------------------------------------------------------------------------------


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


def test_quiet_prints_nothing(explainer: FakeExplainer, photo: Path) -> None:
    result = run("explain", photo, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert Path("tam-fast-out/photo.png").exists()
    result = run("explain", photo, "-q", "--json")
    assert json.loads(result.stdout)["errors"] == []
    assert result.stderr == ""


def test_images_are_explained_one_by_one(explainer: FakeExplainer, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    names = [_save(tmp_path / "x.png"), _save(tmp_path / "a" / "X.jpg"), _save(tmp_path / "y.bmp")]
    result = run("explain", *names)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("tam-fast-out").glob("*.png")) == ["X-2.png", "x.png", "y.png"]
    assert [len(call["images"]) for call in explainer.calls] == [1, 1, 1]
    assert result.stdout.count("A red circle.") == 3


def test_together(explainer: FakeExplainer, tmp_path: Path) -> None:
    names = [_save(tmp_path / "x.png"), _save(tmp_path / "y.png", (20, 30))]
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


def test_standard_input(explainer: FakeExplainer, photo: Path) -> None:
    result = run("explain", "-", input=photo.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert Path("tam-fast-out/stdin.png").exists()
    assert_fails(run("explain", "-", "-", input=b""), 2, "'-' (standard input) at most once")
    assert_fails(run("explain", "-", input=b""), 3, "-: not an image")


def test_answer_cannot_steer_the_terminal(explainer: FakeExplainer, photo: Path) -> None:
    explainer.tokens = ["\x1b[31mA", " [bold]b[/bold]", "\x07 \x1b]0;x"]
    result = run("explain", photo)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[bold]b[/bold]" in result.stdout


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
    path = _save(tmp_path / "x.png")
    before = path.read_bytes()
    assert_fails(run("explain", path, "-o", ".", *force), 3, "would replace an input")
    assert path.read_bytes() == before
    # Not by the result for another image either.
    other = tmp_path / "sub"
    other.mkdir()
    result = run("explain", _save(other / "x.jpg"), path, "-o", ".", "-q", *force)
    assert result.exit_code == 3
    assert path.read_bytes() == before


# Images -------------------------------------------------------------------------------------------------


def _seen(explainer: FakeExplainer, path: Path) -> Image.Image:
    result = run("explain", path, "-q", "-o", "out", "--force")
    assert result.exit_code == 0, result.stderr
    image = explainer.calls[-1]["images"][0]
    assert image.mode == "RGB"
    return image


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "YCbCr", "I;16", "F"])
def test_modes(explainer: FakeExplainer, tmp_path: Path, mode: str) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(ramp).astype(np.float32) / 255)
    else:
        image = ramp.convert("RGB").convert(mode)
    image.save(tmp_path / "x.tif", **({"compression": "raw"} if mode == "YCbCr" else {}))
    seen = np.asarray(_seen(explainer, tmp_path / "x.tif")).astype(int)
    assert seen.shape == (8, 64, 3)
    if mode not in ("1", "P"):  # those dither
        assert np.abs(seen[0, :, 0] - np.arange(0, 256, 4)).max() <= 6


def test_transparency_is_white(explainer: FakeExplainer, tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    for name, picture in (("a.png", image), ("b.gif", image), ("c.png", image.convert("LA"))):
        picture.save(tmp_path / name)
        seen = _seen(explainer, tmp_path / name)
        assert seen.getpixel((3, 3)) == (255, 255, 255)
        assert seen.getpixel((0, 0)) != (255, 255, 255)


def test_rotation_of_the_camera_is_undone(explainer: FakeExplainer, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "x.jpg", (48, 32), exif=exif)
    assert _seen(explainer, path).size == (32, 48)


def test_first_frame_of_an_animation(explainer: FakeExplainer, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert _seen(explainer, tmp_path / "x.gif").getpixel((4, 4)) == (255, 0, 0)


def test_files_that_are_no_images(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello\n" * 100)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "head.jpg").write_bytes(photo.read_bytes()[:20])
    for name, message in (
        ("text.jpg", "text.jpg: not an image, or of a format that Pillow does not know"),
        ("empty.png", "empty.png: not an image"),
        ("head.jpg", "head.jpg: "),
        ("missing.jpg", "missing.jpg: no such file"),
        (".", ".: expected an image file, got a folder"),
    ):
        assert_fails(run("explain", name), 3, message)
    assert explainer.calls == []


def test_truncated_image(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:-400])
    assert_fails(run("explain", "half.jpg"), 3, "half.jpg: the image cannot be read: image file is truncated")


def test_broken_png_chunk(explainer: FakeExplainer, tmp_path: Path) -> None:
    path = _save(tmp_path / "x.png")
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT")
    data[place + 10 : place + 60] = b"\xff" * 50
    path.write_bytes(bytes(data))
    assert_fails(run("explain", "x.png"), 3, "x.png: the image cannot be read")


def _png_head(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def test_huge_images_are_refused_by_their_head(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_head(100_000, 100_000))
    limit = Image.MAX_IMAGE_PIXELS
    message = "expected at most 64000000 pixels (--max-pixels), got 100000 x 100000 = 10000000000"
    assert_fails(run("explain", "bomb.png"), 3, message)
    assert_fails(
        run("explain", photo, "--max-pixels", "100"), 3, "at most 100 pixels (--max-pixels), got 48 x 32 = 1536"
    )
    assert limit == Image.MAX_IMAGE_PIXELS
    assert run("explain", photo, "--max-pixels", "1536").exit_code == 0


def test_one_bad_image_does_not_stop_the_others(explainer: FakeExplainer, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "half.jpg").write_bytes(photo.read_bytes()[:-400])
    result = run("explain", "none.jpg", "half.jpg", photo)
    assert result.exit_code == 3
    assert result.stderr.count("tam-fast: error: ") == 2
    assert result.stdout.count("A red circle.") == 1
    assert Path("tam-fast-out/photo.png").exists()


# Other failures -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "--nosuch"),
        ("explain", "--compat", "other"),
        ("explain", "--dtype", "int8"),
        ("explain", "--max-new-tokens", "x"),
        ("nosuch",),
        ("info", "extra"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_output_that_cannot_be_written(explainer: FakeExplainer, photo: Path) -> None:
    Path("file").write_text("x")
    assert_fails(run("explain", photo, "-o", "file"), 3, "--output: cannot make the folder 'file'")
    assert_fails(run("explain", photo, "-o", "file/below"), 3, "--output: cannot make the folder")


def test_full_disk(explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Explanation, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Explanation, "save", full)
    assert_fails(run("explain", photo), 3, "the results cannot be written: [Errno 28] No space left on device")


def test_model_that_refuses_the_input(explainer: FakeExplainer, photo: Path) -> None:
    explainer.error = ValueError("images: expected an aspect ratio\nbelow 200")
    assert_fails(run("explain", photo), 4, "photo.jpg: images: expected an aspect ratio below 200")


def test_unexpected_failure(explainer: FakeExplainer, photo: Path) -> None:
    explainer.error = RuntimeError("something\n   broke " + "x" * 5000)
    result = run("explain", photo)
    assert_fails(result, 1, "unexpected RuntimeError: something broke xxx")
    assert len(result.stderr) < 1000
    result = run("explain", photo, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "raise self.error" in result.stderr


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./missing", "got './missing', which does not exist"),
        ("missing", "got 'missing', which does not exist"),
        ("photo.jpg", "got 'photo.jpg', which is a file"),
        ("folder", "got 'folder', which has no config.json"),
        ("broken", "--model: cannot use 'broken'"),
        ("text", "--model: cannot use 'text'"),
        ("owner/none", "--model: cannot use 'owner/none'"),
    ],
)
def test_models_that_cannot_be_loaded(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, config in (("folder", None), ("broken", "{"), ("text", '{"model_type": "gpt2"}')):
        (tmp_path / name).mkdir()
        if config is not None:
            (tmp_path / name / "config.json").write_text(config)
    assert_fails(run("explain", photo, "--model", model), 4, message)


def test_devices(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails(run("explain", photo, "--device", "nosuch"), 2, "--device: expected one that torch can use here")
    if not torch.cuda.is_available():
        assert_fails(run("explain", photo, "--device", "cuda"), 2, "--device: expected one that torch can use here")
    assert cli._device("cpu") == torch.device("cpu")
    assert cli._device("auto").type in ("cpu", "cuda")


def test_missing_samples(explainer: FakeExplainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tam_fast.demo.sample_scenes", list)
    assert_fails(run("explain"), 3, "this installation lacks the sample scenes")


# With models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny random models with their processors: qwen and llava."""
    folder = tmp_path_factory.mktemp("models")
    for name, processor, make in (
        ("qwen", conftest_models.qwen_processor(), conftest_models.qwen_model),
        ("llava", conftest_models.llava_processor(), conftest_models.llava_model),
    ):
        make(processor).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_model_folder(models: Path, name: str, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("explain", photo, "--model", models / name, "--max-new-tokens", "5", "--json")
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["results"]
    e = load("tam-fast-out/photo")
    assert entry["answer"] == e.text
    assert 1 <= len(e) <= 5
    with Image.open(photo) as image:
        made = Explainer(*_loaded(models / name)).explain(image.convert("RGB"), max_new_tokens=5, do_sample=False)
    assert made.token_ids == e.token_ids
    assert torch.equal(made.maps.maps, e.maps.maps)
    assert made.candidates == e.candidates


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
    job_runs = cli._run

    def on_terminal(*arguments: Any) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            return job_runs(*arguments)

    monkeypatch.setattr(cli, "_run", on_terminal)
    result = run("explain", photo, *options, "-o", "watched")
    assert result.exit_code == 0, result.stderr
    shown = terminal.getvalue()
    plain, watched = load("plain/photo"), load("watched/photo")
    assert plain.token_ids == watched.token_ids
    assert torch.equal(plain.maps.maps, watched.maps.maps)
    assert shown.count("\r\x1b[Ktam-fast: token ") == len(plain)
    assert shown.endswith("\r\x1b[K")


def _loaded(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, tam_fast.load_processor(folder)


def test_given_answer_with_two_images(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [_save(tmp_path / "x.png", (60, 90)), _save(tmp_path / "y.png", (120, 60))]
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
        made = Explainer(*_loaded(models / "qwen")).explain(
            image.convert("RGB"), answer="The dog looks.", compat=compat
        )
    assert torch.equal(made.maps.maps.nan_to_num(), load("tam-fast-out/photo").maps.maps.nan_to_num())


def test_image_that_the_processor_refuses(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _save(tmp_path / "line.png", (900, 2))
    assert_fails(run("explain", path, "--model", models / "qwen"), 4, "line.png: ")


def test_unsupported_model(models: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = transformers.Blip2Config(
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        qformer_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "encoder_hidden_size": 8,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": 500,
            "hidden_size": 8,
            "ffn_dim": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "word_embed_proj_dim": 8,
        },
    )
    transformers.Blip2ForConditionalGeneration(config).save_pretrained("blip")
    for file in (models / "qwen").glob("token*"):
        shutil.copy(file, "blip")
    shutil.copy(models / "qwen" / "processor_config.json", "blip")
    assert_fails(run("explain", photo, "--model", "blip"), 4, "--model: cannot use 'blip'")


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


# Help, version, info ------------------------------------------------------------------------------------


def test_help_documents_exit_codes() -> None:
    for arguments in (("--help",), ("explain", "-h"), ("info", "--help")):
        result = run(*arguments)
        assert result.exit_code == 0
        for code in cli.ExitCode:
            assert f"\n    {int(code)}  " in result.stdout
    assert "Usage" in run().output


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"tam-fast {tam_fast.__version__}\n")


def test_info() -> None:
    result = run("info")
    assert result.exit_code == 0, result.stderr
    assert ["versions.torch", torch.__version__] in [line.split() for line in result.stdout.splitlines()]
    document = json.loads(run("info", "--json").stdout)
    assert document["tam-fast"] == tam_fast.__version__
    assert document["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert document["backend"] == json.loads(json.dumps(tam_fast.backend_info()))
    assert any(device.startswith("cpu") for device in document["devices"])


def test_info_of_a_broken_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("TAM_FAST_ISA: expected one of serial, avx2, got 'x'")

    monkeypatch.setattr(tam_fast, "backend_info", refuse)
    assert_fails(run("info"), 1, "TAM_FAST_ISA: expected one of serial, avx2, got 'x'")


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def test_as_a_process(tmp_path: Path, environment: dict[str, str]) -> None:
    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tam_fast", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    done = python("explain", "none.png")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == ["tam-fast: error: none.png: no such file"]


def test_help_needs_no_model_library(environment: dict[str, str]) -> None:
    code = (
        "import sys; from tam_fast.cli import app\n"
        "try: app(['explain', '--help'])\n"
        "finally: assert not {'transformers', 'PIL', 'tam_fast.explainer'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--max-pixels" in done.stdout


def test_main_survives_an_encoding_without_the_answers_letters(
    explainer: FakeExplainer, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer.tokens = ["\u732b", " \ud800"]
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["tam-fast", "explain", str(photo)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    stdout.flush()
    assert rb"\u732b" in stdout.buffer.getvalue()  # type: ignore[attr-defined]


def test_module_is_the_command() -> None:
    assert importlib.import_module("tam_fast.__main__").main is cli.main
