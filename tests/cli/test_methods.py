"""``tam-fast methods``, and ``--method`` of ``tam-fast explain``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest_cli import FakeExplainer, assert_fails, run
from explanations import make_explanation
from places import ROOT

from tam_fast.cli.console import Failure
from tam_fast.cli.method import option_value
from tam_fast.cli.methods import BEHIND
from tam_fast.cli.terminal import show
from tam_fast.demo import sample_scenes
from tam_fast.explain import Explainer
from tam_fast.explanation import load
from tam_fast.methods import METHODS
from tam_fast.methods.filters import FILTERS
from tam_fast.methods.refining import INTERFERENCES
from tam_fast.methods.registry import Kind
from tam_fast.models.errors import ModelNotSupportedError

PAGES_OWN = "this page's example"  # the source of the method that docs/methods.md registers


# The table


def test_json_holds_every_method() -> None:
    found = json.loads(run("methods", "--json").stdout)
    assert list(found["methods"]) == list(METHODS)
    assert {entry["kind"] for entry in found["methods"].values()} == set(get_args(Kind))
    assert found["methods"]["lime"]["options"]["samples"] == 256
    assert found["methods"]["attn_lrp"]["signed"] is True
    assert "supported" not in found["methods"]["cam"]
    assert (list(found["filters"]), list(found["scales"])) == (list(FILTERS), ["map", "answer"])


def test_what_can_stand_behind_a_name_is_what_there_is() -> None:
    assert list(BEHIND["interference"]) == list(INTERFERENCES)
    assert list(BEHIND["filter"]) == list(FILTERS)


def test_table_for_people() -> None:
    lines = run("methods").stdout.splitlines()
    (row,) = [line for line in lines if line.startswith("attention ")]
    assert row.split()[:2] == ["attention", "attention"]
    assert "layer=none, heads=mean" in row
    assert {"+INTERFERENCE", "+FILTER", "--scale"} <= set(lines)
    assert "this model" not in lines[0]


def test_the_page_has_this_table() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- methods -->\n")[2].partition("<!-- /methods -->")[0].splitlines()
    rows = run("methods", "--markdown").stdout.splitlines()
    assert shown == [row for row in rows if PAGES_OWN not in row], "tam-fast methods --markdown"
    assert all(row.count("|") == 8 for row in rows)


def test_what_a_model_can(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = METHODS["cam"].__class__(**{**vars(METHODS["cam"]), "check": _refuse})
    monkeypatch.setitem(_registered(), "cam", changed)
    found = json.loads(run("methods", "-m", models / "qwen", "--json").stdout)["methods"]
    assert found["attention"]["supported"] is True
    assert (found["cam"]["supported"], found["cam"]["reason"]) == (False, "method: 'cam' needs more, got less")
    lines = run("methods", "-m", models / "qwen").stdout.splitlines()
    assert "this model" in lines[0]
    assert lines[lines.index("not by this model: cam") + 1] == "  method: 'cam' needs more, got less"


def _refuse(_model: Any, **_: Any) -> None:
    raise ModelNotSupportedError("method: 'cam' needs more, got less")


def _registered() -> dict[str, Any]:
    from tam_fast.methods import registry

    return registry._methods


def test_options_of_the_table_that_contradict_each_other(tmp_path: Path) -> None:
    assert_fails(run("methods", "--markdown", "--json"), 2, "--markdown: expected none with --json")
    assert_fails(run("methods", "--markdown", "-m", "x"), 2, "--markdown: expected none with --model")
    assert_fails(run("methods", "-m", " "), 2, "--model: expected a model folder or a model hub id, got ' '")
    assert_fails(run("methods", "-m", tmp_path / "none"), 4, "which does not exist")


# explain --method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "magic"), "--method: expected one of tam, cam"),
        (("--method", "cam+magic"), "--method: expected one of eci, eci_mean"),
        (("--method", "cam+rgf+eci"), "--method: expected METHOD[+INTERFERENCE][+FILTER]"),
        (("--method", "tam+eci"), "--method: expected nothing behind 'tam'"),
        (("--method", "cam", "--method-option", "layer=1"), "expected none with --method cam, got 'layer'"),
        (("--method", "rise", "--method-option", "masks=1"), "got 'masks', which only Python has"),
        (("--method", "layer_cam", "--method-option", "layer"), "--method-option: expected NAME=VALUE, got 'layer'"),
        (("--method", "layer_cam", "--method-option", "layer="), "--method-option: expected NAME=VALUE"),
        (
            ("--method", "attention", "--method-option", "layer=1", "--method-option", "layer=2"),
            "--method-option: expected layer at most once, got 'layer=2' too",
        ),
        (("--method", "rise", "--method-option", "samples=x"), "samples: expected a whole number, got 'x'"),
        (("--method", "rise", "--method-option", "images=x.png"), "images: expected true, for superpixels, or false"),
        (("--method-option", "layer=1"), "--method-option: expected none with --method tam, got 'layer=1'"),
        (("--scale", "answer"), "--scale: expected none with --method tam, got 'answer'"),
        (("--method", "cam", "--contrast"), "--contrast: expected none with --method cam, got both"),
        (("--method", "cam", "--compat", "paper"), "--compat: expected none with --method cam, got 'paper'"),
        (("--method", "cam", "--text-only", "-p", "x"), "--text-only: expected none with --method cam, got both"),
        (("--method", "cam", "--targets", "prompt"), "--method: expected none with --targets prompt, got 'cam'"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    explainer: FakeExplainer, options: tuple[str, ...], message: str
) -> None:
    assert_fails(run("explain", *options), 2, message)
    assert explainer.calls == []


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        (None, "3", 3),
        (None, "mean", "mean"),
        (None, "none", None),
        (16, "none", None),
        ("mean", "0", 0),
        (False, "true", True),
        (False, "4", 4),
        (1.0, "2", 2.0),
        (0.1, "1e-3", 1e-3),
        (8, "-1", -1),
    ],
)
def test_values_are_read_by_the_type_of_the_default(default: Any, text: str, value: Any) -> None:
    found = option_value(default, "x", text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(("default", "text"), [(8, "1.5"), (False, "yes"), (0.5, "true")])
def test_values_of_another_type_are_refused(default: Any, text: str) -> None:
    with pytest.raises(Failure, match=f"--method-option: x: expected .*, got '{text}'"):
        option_value(default, "x", text)


def test_what_is_passed_on(explainer: FakeExplainer, photo: Path) -> None:
    assert run("explain", photo).exit_code == 0
    assert "method" not in explainer.calls[0]
    options = ("--method", "lime+rgf", "--scale", "answer", "--method-option", "samples=9")
    assert run("explain", photo, *options, "--method-option", "images=true").exit_code == 0
    call = explainer.calls[1]
    assert (call["method"], call["scale"]) == ("lime+rgf", "answer")
    assert call["method_options"]["samples"] == 9
    assert call["method_options"]["images"] is True


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TypeError("layer: expected a layer's number, got 'foo'"), "--method-option: layer: expected a layer's number"),
        (ValueError("layer: expected a layer from 0 to 1, got 9"), "--method-option: layer: expected a layer from 0"),
        (ModelNotSupportedError("method: 'attention' needs"), "photo.jpg: --method: 'attention' needs"),
    ],
)
def test_what_the_library_refuses_is_the_models_failure(
    explainer: FakeExplainer, photo: Path, error: Exception, message: str
) -> None:
    explainer.error = error
    result = run("explain", photo, "--method", "attention", "--method-option", "layer=foo")
    assert_fails(result, 4, message)
    explainer.error = TypeError("unsupported operand")
    assert_fails(run("explain", photo, "--method", "attention"), 1, "unexpected TypeError")


def test_maps_of_another_method_have_no_grounding(embedded: Explainer) -> None:
    scene = sample_scenes()[0]
    options = ("--answer", "A red circle.", "--method", "cam+rgf", "--scale", "answer")
    result = run("explain", scene, *options)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "; maps of cam+rank_gaussian, scaled by the answer)" in lines[0]
    assert lines[1] == "A red circle."
    assert lines[2].split()[:5] == ["word", "strength", "peak", "cell", "pixel"]
    assert not any("[" in line or "grounding" in line for line in lines)
    (entry,) = json.loads(run("explain", scene, *options, "--json", "-q").stdout)["results"]
    assert (entry["method"], entry["scale"]) == ("cam+rank_gaussian", "answer")
    for part in (*entry["words"], *entry["tokens"]):
        assert not {"grounding", "visual", "scale"} & set(part)
    e = load(Path("tam-fast-out") / scene.stem)
    assert e.method == "cam+rank_gaussian@answer"
    written = sorted(path.suffix for path in Path("tam-fast-out").iterdir())
    assert written == [".html", ".json", ".png", ".safetensors"]
    assert [word["strength"] for word in entry["words"]] == [word.strength for word in e.words]


def test_the_document_names_tam(explainer: FakeExplainer, photo: Path) -> None:
    (entry,) = json.loads(run("explain", photo, "--json").stdout)["results"]
    assert entry["method"] == "tam"
    assert "scale" not in entry
    stream = io.StringIO()
    show(stream, "x.png", make_explanation(["Red"], ((3, 4),)), {}, "inferno")
    assert "maps of" not in stream.getvalue()
