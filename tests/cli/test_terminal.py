"""What stands on the terminal: marks of words that are not visual, thinking, the prompt's words, text alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_cli import FakeExplainer, run
from explanations import make_explanation

from tam_fast.cli.document import thinking_tokens
from tam_fast.cli.terminal import show
from tam_fast.demo import sample_scenes
from tam_fast.explain import Explainer
from tam_fast.explanation import Explanation, load


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _maps(*seen: bool) -> torch.Tensor:
    """Maps of one bright cell, or of none, over 3 x 4 cells."""
    maps = torch.zeros(len(seen), 12)
    maps[:, 5] = torch.tensor(seen).float()
    return maps


def _shown(explanation: Explanation, stream: io.StringIO) -> list[str]:
    show(stream, "x.png", explanation, {"json": Path("x.json")}, "inferno")
    return stream.getvalue().splitlines()


def test_words_that_are_not_visual_stand_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    e = make_explanation(
        ["The", " big", " red", ",\n", "a", " cir", "cle"],
        ((3, 4),),
        maps=_maps(False, False, True, False, False, False, True),
    )
    lines = _shown(e, io.StringIO())
    assert lines[1:3] == ["The big red,", "a circle"]
    assert lines[-5:] == ["[The big] red,", "[a] circle", "[ ] not visual: grounding below 0.5", "x.json", ""]
    lines = _shown(e, Terminal())
    assert lines[1].startswith("\x1b[2;3m[The big]\x1b[0m \x1b[")
    assert "48;5;" in lines[1]
    assert lines[2].startswith("\x1b[2;3m[a]\x1b[0m \x1b[")
    assert sum("[a]" in line for line in lines) == 1


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_brackets_stay_without_colours(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "dumb")
    e = make_explanation(["A", " circle"], ((3, 4),), maps=_maps(False, True))
    assert any("[A]" in line for line in _shown(e, Terminal()))


def test_nothing_is_marked_where_all_is_visual() -> None:
    e = make_explanation(["Red", " circle"], ((3, 4),), maps=_maps(True, True))
    assert not any("not visual" in line for line in _shown(e, io.StringIO()))


def test_grounding_in_the_table_and_the_document(explainer: FakeExplainer, photo: Path) -> None:
    (entry,) = json.loads(run("explain", photo, "--json").stdout)["results"]
    e = load("tam-fast-out/photo")
    words = e.grounding.words(e.words)
    assert [word["grounding"]["score"] for word in entry["words"]] == words.score.tolist()
    assert [word["visual"] for word in entry["words"]] == words.visual.tolist()
    assert entry["tokens"][3]["grounding"] == {name: values[3] for name, values in e.grounding.to_dict().items()}
    lines = run("explain", photo).stdout.splitlines()
    assert lines[2].split()[5:7] == ["scale", "grounding"]
    assert [line.split()[5] for line in lines[3:6]] == [f"{score:.2f}" for score in words.score.tolist()]


def test_thinking_is_folded(embedded: Explainer) -> None:
    answer = "<think>A red square.</think>\nA red circle."
    scene = sample_scenes()[0]
    result = run("explain", scene, "--answer", answer)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[1:3] == ["[thinking: 4 tokens]", "A red circle."]
    (entry,) = json.loads(run("explain", scene, "--answer", answer, "--json", "-q").stdout)["results"]
    assert (entry["thinking"], entry["answer"]) == ({"text": "A red square.", "tokens": 4}, "A red circle.")
    assert entry["tokens"][0]["step"] > 4
    result = run("explain", scene, "--answer", answer, "--targets", "thinking")
    assert result.stdout.splitlines()[1] == "A red square."
    # Asked of some words alone, the section is as long as before.
    assert run("explain", scene, "--answer", answer, "--word", "circle", "-q").exit_code == 0
    e = load(Path("tam-fast-out") / Path(scene).stem)
    assert [word.text for word in e.words] == ["circle"]
    assert thinking_tokens(e) == 4


def test_words_of_the_prompt(embedded: Explainer) -> None:
    scene = sample_scenes()[0]
    result = run("explain", scene, "--targets", "prompt", "-p", "Where is the star?")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1] == "Where is the star?"
    made = embedded.explain(scene, "Where is the star?", targets="prompt")
    rows = [line.split()[:2] for line in lines[3 : 3 + len(made.words)]]
    assert rows == [[word.text, f"{word.strength:.2f}"] for word in made.words]


def test_text_alone(embedded: Explainer) -> None:
    result = run("explain", "--text-only", "-p", "Hello?", "--max-new-tokens", "4")
    assert result.exit_code == 0, result.stderr
    head, _, titles, *_ = result.stdout.splitlines()
    assert head == "text  (tam-fast demo; 4 tokens; no images)"
    assert titles.split()[:4] == ["word", "scale", "strongest", "context"]
    assert "not visual" not in result.stdout
    assert sorted(path.name for path in Path("tam-fast-out").iterdir()) == [
        "text.html",
        "text.json",
        "text.safetensors",
    ]
    e = load("tam-fast-out/text")
    assert e.maps.maps.shape == (4, 0)
    options = ("--text-only", "-p", "Hello?", "--max-new-tokens", "4", "--json", "-q")
    (entry,) = json.loads(run("explain", *options).stdout)["results"]
    assert (entry["image"], entry["words"][0]["peak"], entry["grids"]) == (None, None, [])
    assert set(entry["files"]) == {"arrays", "json", "page"}


def test_a_picture_of_an_earlier_run_does_not_stay_beside_a_text(explainer: FakeExplainer, photo: Path) -> None:
    photo.rename("text.jpg")
    ask: tuple[Any, ...] = ("explain", "--text-only", "-p", "x", "-q")
    assert run("explain", "text.jpg", "-q").exit_code == 0
    assert Path("tam-fast-out/text.png").exists()
    assert run(*ask).exit_code == 0
    assert not Path("tam-fast-out/text.png").exists()
    Path("tam-fast-out/text.png").write_text("mine")
    result = run(*ask)
    assert (result.exit_code, Path("tam-fast-out/text.png").read_text()) == (3, "mine")
