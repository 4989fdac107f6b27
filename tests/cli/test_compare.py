"""``tam-fast compare``: columns, what each is asked, files, and what is no comparison."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from conftest_cli import FakeExplainer, assert_fails, run, save_image
from PIL import Image
from typer.testing import CliRunner

from tam_fast.cli.help import Spreading
from tam_fast.explain import Explainer
from tam_fast.explanation import Explanation


class Compared(FakeExplainer):
    """Answers with the model's name, the prompt or the method in it, and remembers which models were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str | None] = []

    def explain(self, images: Any, **options: Any) -> Explanation:
        made = super().explain(images, **options)
        made.model = self.loaded[-1] or "embedded"
        made.method = options.get("method", "tam")
        made.prompt = options["prompt"]
        return made


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compared:
    monkeypatch.chdir(tmp_path)
    fake = Compared()

    def load(model: str | None, device: str, dtype: str, debug: bool) -> Compared:
        fake.loaded.append(model)
        return fake

    monkeypatch.setattr("tam_fast.cli.compare.load_explainer", load)
    return fake


def test_methods_explain_the_same_tokens(compared: Compared, photo: Path) -> None:
    result = run("compare", photo, "--methods", "tam,cam", "cam+eci", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert compared.loaded == [None]
    assert [call.get("method", "tam") for call in compared.calls] == ["tam", "cam", "cam+eci"]
    assert "answer" not in compared.calls[0]
    assert compared.calls[0]["do_sample"] is False
    for call in compared.calls[1:]:
        # All that was generated up to the last explained token: context from the prompt's end on, and that token.
        assert call["answer"] == [3, 4, 5, 6, 104]
        assert call["scale"] == "answer"
        assert "do_sample" not in call
    assert {call["prompt"] for call in compared.calls} == {"Describe this image."}
    assert sorted(path.name for path in Path("out").iterdir()) == ["photo-compared.html", "photo-compared.png"]
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["word", "tam", "cam", "cam+eci"]
    assert [line.split()[0] for line in lines[1:-1]] == ["A", "red", "circle"]
    assert lines[-1] == f"open {Path('out/photo-compared.html')}"
    page = Path("out/photo-compared.html").read_text(encoding="utf-8")
    assert re.findall('<h2 dir="auto">([^<]*)</h2>', page) == ["tam", "cam", "cam+eci"]
    assert "<title>photo.jpg</title>" in page


@pytest.mark.long
def test_prompts_have_answers_of_their_own(compared: Compared, photo: Path) -> None:
    assert run("compare", photo, "--prompts", "What?", "Where?", "-o", "a.html").exit_code == 0
    assert [call["prompt"] for call in compared.calls] == ["What?", "Where?"]
    assert not any("answer" in call for call in compared.calls)
    assert run("compare", photo, "--prompts", "What?", "Where?", "--same-answer", "-o", "a.html").exit_code == 0
    assert compared.calls[3]["answer"] == [3, 4, 5, 6, 104]
    assert run("compare", photo, "--prompts", "What?", "Where?", "--answer", "A cat", "-o", "a.html").exit_code == 0
    assert [call["answer"] for call in compared.calls[4:]] == ["A cat", "A cat"]
    assert {path.name for path in Path().iterdir()} == {"photo.jpg", "a.html"}


def test_models_are_loaded_one_after_the_other(compared: Compared, photo: Path, tmp_path: Path) -> None:
    for name in ("one/model", "two/model"):
        (tmp_path / name).mkdir(parents=True)
    models = [tmp_path / "one/model", "owner/large", tmp_path / "two/model", "embedded"]
    result = run("compare", photo, "--models", *models, "--same-answer", "-o", "a.html")
    assert result.exit_code == 0, result.stderr
    assert compared.loaded == [str(models[0]), "owner/large", str(models[2]), None]
    # Another model has tokens of its own for the text.
    assert [call.get("answer") for call in compared.calls] == [None, *["A red circle."] * 3]
    page = Path("a.html").read_text(encoding="utf-8")
    titles = ["model (1)", "owner/large", "model (3)", "embedded"]
    assert re.findall('<h2 dir="auto">([^<]*)</h2>', page) == titles
    assert str(tmp_path) not in page


@pytest.mark.parametrize("name", ["a.png", "a.JPG"])
def test_one_picture(compared: Compared, photo: Path, name: str) -> None:
    arguments = ("compare", photo, "--methods", "tam,cam", "-o", name)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"open {name}"
    with Image.open(name) as made:
        assert made.format == ("PNG" if name == "a.png" else "JPEG")
        assert made.width > 500
    assert {path.name for path in Path().iterdir()} == {"photo.jpg", name}
    # Its own file is replaced, another's is not.
    assert run(*arguments).exit_code == 0
    Image.new("RGB", (4, 4)).save(name)
    assert_fails(run(*arguments), 3, f"{name} exists and is not of an earlier run; choose another name with -o")


def test_json(compared: Compared, photo: Path) -> None:
    result = run("compare", photo, "--methods", "tam,cam", "--json", "-q", "-o", "a.html")
    document = json.loads(result.stdout)
    assert document["image"] == str(photo)
    assert [(column["title"], column["method"], column["text"]) for column in document["columns"]] == [
        ("tam", "tam", "A red circle."),
        ("cam", "cam", "A red circle."),
    ]
    assert [row["word"] for row in document["rows"]] == ["A", "red", "circle"]
    assert all(0 < value <= 1 for row in document["rows"] for value in row["strength"])
    assert document["files"] == {"page": "a.html"}
    assert run("compare", photo, "--methods", "tam,cam", "-q", "-o", "a.html").stdout == ""


def test_standard_input_is_read_once(compared: Compared) -> None:
    made = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(made, format="PNG")
    result = run("compare", "-", "--prompts", "What?", "Where?", "-o", "a.html", input=made.getvalue())
    assert result.exit_code == 0, result.stderr
    assert [call["images"][0].size for call in compared.calls] == [(40, 30)] * 2
    assert Path("a.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--models: expected one of --models, --prompts and --methods, got none"),
        (("--models", "a", "b", "--methods", "tam,cam"), "and --methods, got --models and --methods"),
        (("--methods", "tam"), "--methods: expected 2 to 16 to compare, got 1"),
        (("--prompts", *map(str, range(17))), "--prompts: expected 2 to 16 to compare, got 17"),
        (("--methods", "tam,,cam"), "--methods: expected some text, got ''"),
        (("--methods", "cam,tam,cam"), "--methods: expected each once, got 'cam' twice"),
        (("--methods", "tam,nosuch"), "method: expected"),
        (("--prompts", "a", " "), "--prompts: expected some text, got ' '"),
        (("--prompts", "a", "b", "-p", "c"), "--prompt: expected none with --prompts, got 'c'"),
        (("--models", "a/b", "c/d", "-m", "e/f"), "--model: expected none with --models, got 'e/f'"),
        (("--methods", "tam,cam", "--answer", "a", "--same-answer"), "--same-answer: expected none with --answer"),
        (("--methods", "tam,cam", "--kernel-size", "4"), "--kernel-size: expected an odd number"),
        (("--methods", "tam,cam", "--cmap", "nosuch"), "--cmap: expected inferno"),
        (
            ("--methods", "tam,cam", "-o", "a.mp4"),
            "--output: expected a folder, or a name in .html, .png or .jpg, got 'a.mp4'",
        ),
    ],
)
def test_what_is_no_comparison(compared: Compared, photo: Path, arguments: tuple[str, ...], message: str) -> None:
    assert_fails(run("compare", photo, *arguments), 2, message)
    assert compared.loaded == []
    assert {path.name for path in Path().iterdir()} == {"photo.jpg"}


def test_files_that_cannot_be_used(compared: Compared, photo: Path) -> None:
    methods = ("--methods", "tam,cam")
    assert_fails(run("compare", "none.jpg", *methods), 3, "none.jpg: no such file")
    message = "--output: expected a file in a folder that exists, got one in 'none'"
    assert_fails(run("compare", photo, *methods, "-o", "none/a.html"), 3, message)
    trap = photo.rename("photo.png")
    data = trap.read_bytes()
    assert_fails(run("compare", trap, *methods, "-o", "photo.png", "--force"), 3, "would replace an input")
    assert trap.read_bytes() == data
    assert compared.loaded == []


def test_a_file_that_came_meanwhile_stays(compared: Compared, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path("tam-fast-out/photo-compared.png")
    answer = compared.explain

    def explain(images: Any, **options: Any) -> Explanation:
        place.write_bytes(b"mine")
        return answer(images, **options)

    monkeypatch.setattr(compared, "explain", explain)
    assert_fails(run("compare", photo, "--methods", "tam,cam"), 3, f"{place} exists and is not of an earlier run")
    assert place.read_bytes() == b"mine"
    assert [entry.name for entry in place.parent.iterdir()] == [place.name]


def test_which_column_failed(compared: Compared, photo: Path) -> None:
    compared.error = ValueError("prompt: too long")
    assert_fails(run("compare", photo, "--prompts", "What?", "Where?"), 4, "What?: prompt: too long")
    assert list(Path("tam-fast-out").iterdir()) == []


def test_values_that_follow_each_other() -> None:
    seen: dict[str, Any] = {}

    app = typer.Typer()

    @app.command(cls=Spreading)
    def command(
        image: str | None = None,
        rest: Annotated[list[str] | None, typer.Argument()] = None,
        names: Annotated[list[str] | None, typer.Option("--names", "-n")] = None,
        flag: bool = False,
    ) -> None:
        seen.update(rest=rest or [], names=names or [], flag=flag)

    for arguments, rest, names, flag in (
        (["x", "--names", "a", "b", "--flag"], ["x"], ["a", "b"], True),
        (["--names", "-a", "b", "-", "--names", "c"], [], ["-a", "b", "-", "c"], False),
        (["--names=a", "b", "--flag", "x"], ["x"], ["a", "b"], True),
        (["-n", "a", "b", "--", "x", "--names"], ["x", "--names"], ["a", "b"], False),
        (["x", "y"], ["x", "y"], [], False),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert (seen["rest"], seen["names"], seen["flag"]) == (rest, names, flag), arguments
    assert CliRunner().invoke(app, ["--names"]).exit_code == 2


@pytest.mark.long
def test_variants_of_the_method(demo_explainer: Explainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The embedded model: the same words under four variants; with the filter alone the map is that of its recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tam_fast.cli.compare.load_explainer", lambda *_: demo_explainer)
    result = run("compare", "--methods", "tam,cam,cam+eci,cam+rgf", "--json", "-o", "a.html")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len({column["text"] for column in document["columns"]}) == 1
    assert [column["method"] for column in document["columns"]] == [
        "tam",
        "cam@answer",
        "cam+eci@answer",
        "cam+rank_gaussian@answer",
    ]
    assert all(None not in row["strength"] for row in document["rows"])
    the = document["rows"][0]
    # Causal inference takes away most of what a word without an object has; the filter alone does not.
    assert the["strength"][2] < 0.5 * the["strength"][3]
    assert the["strength"][0] < 0.5 * the["strength"][1]


@pytest.mark.long
def test_models_of_other_families(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    photo = save_image(tmp_path / "photo.png")
    arguments = ("--models", models / "qwen", models / "llava", "--answer", "A red circle", "-o", "a.html")
    result = run("compare", photo, *arguments)
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["word", "qwen", "llava"]
    assert [line[0] for line in lines[1:-1]] == ["A", "red", "circle"]
    assert all("-" not in line for line in lines[1:-1])
    page = Path("a.html").read_text(encoding="utf-8")
    assert str(models) not in page
