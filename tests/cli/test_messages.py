"""Conversations that the command is given: turns, paths, what a file may hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from conftest_cli import FakeExplainer, assert_fails, run, save_image
from PIL import Image

from tam_fast.demo import sample_scenes
from tam_fast.explain import Explainer
from tam_fast.explanation import load

QUESTION = {"type": "text", "text": "Describe this image."}


def _write(messages: Any, path: str = "chat.json") -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(json.dumps(messages))
    return path


def _turns(*parts: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [*parts, QUESTION]},
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": "Where is it?"},
    ]


def test_paths_are_seen_from_the_file(explainer: FakeExplainer, tmp_path: Path, film: Path) -> None:
    (tmp_path / "sub").mkdir()
    save_image(tmp_path / "sub" / "a.png", (20, 30))
    data = base64.b64encode(save_image(tmp_path / "b.png").read_bytes()).decode()
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "image", "base64": data},
        {"type": "video", "path": "../film.gif", "fps": 2},
        {"type": "video", "video": ["a.png", "a.png"]},
    ]
    result = run("explain", "--messages", _write(_turns(*parts), "sub/chat.json"))
    assert result.exit_code == 0, result.stderr
    (call,) = explainer.calls
    assert "prompt" not in call
    assert call["images"] == []
    one, two, three, four, five, text = call["messages"][0]["content"]
    assert [part["image"].size for part in (one, two, three)] == [(20, 30), (48, 32), (48, 32)]
    assert four == {"type": "video", "video": Path("sub/../film.gif"), "fps": 2}
    assert [frame.size for frame in five["video"]] == [(20, 30)] * 2
    assert text == QUESTION
    assert call["messages"][1:] == _turns()[1:]
    assert sorted(path.name for path in Path("tam-fast-out").iterdir()) == [
        "chat.html",
        "chat.json",
        "chat.safetensors",
    ]


def test_images_of_the_command_line_fill_the_gaps(explainer: FakeExplainer, photo: Path, film: Path) -> None:
    path = _write(_turns({"type": "image"}, {"type": "video"}, {"type": "image"}))
    other = save_image(Path("other.png"), (20, 30))
    assert run("explain", photo, other, "--video", film, "--messages", path, "--num-frames", "2").exit_code == 0
    (call,) = explainer.calls
    first, second, third, _ = call["messages"][0]["content"]
    assert (first["image"].size, second["video"], third["image"].size) == ((48, 32), film, (20, 30))
    message = "IMAGE: expected as many as there are images without a file in the messages, 2, got 1"
    assert_fails(run("explain", photo, "--video", film, "--messages", path), 2, message)
    assert_fails(run("explain", photo, other, "--messages", path), 2, "--video: expected as many as there are videos")
    assert_fails(run("explain", photo, "none.png", "--messages", path), 3, "none.png: no such file")


def test_tools_and_thoughts_without_content(explainer: FakeExplainer) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "here"},
    ]
    assert run("explain", "--messages", _write(turns), "-q").exit_code == 0
    assert explainer.calls[0]["messages"] == turns


def test_standard_input(explainer: FakeExplainer, photo: Path) -> None:
    turns = _turns({"type": "image", "image": photo.name})
    assert run("explain", "--messages", "-", "-q", input=json.dumps(turns).encode()).exit_code == 0
    assert load("tam-fast-out/stdin").text == "A red circle."


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("{", 3, "chat.json: messages: expected JSON, got what is none: "),
        ('{"a": 1}', 3, "messages: expected a JSON list of messages, got an object"),
        ("[]", 3, "messages: expected at least one, got none"),
        ('["x"]', 3, "messages[0]: expected {'role': ..., 'content': ...}, got str"),
        ('[{"role": "robot", "content": "x"}]', 3, "messages[0]: expected role system"),
        ('[{"role": "user", "content": 3}]', 3, "messages[0]['content']: expected a text or a list of parts, got int"),
        ('[{"role": "user", "content": [{"type": "sound"}]}]', 3, "messages[0]['content'][0]: expected type 'text'"),
        (
            '[{"role": "user", "content": [{"type": "image", "image": "a", "url": "b"}]}]',
            3,
            "messages[0]['content'][0]: expected one of image",
        ),
        (
            '[{"role": "user", "content": [{"type": "image", "image": "none.png"}]}]',
            3,
            "messages[0]['content'][0]: none.png: no such file",
        ),
        (
            '[{"role": "user", "content": [{"type": "image", "url": "https://a.b/c.png"}]}]',
            3,
            "messages[0]['content'][0]: expected a file, got the URL 'https://a.b/c.png': download it",
        ),
        (
            '[{"role": "user", "content": [{"type": "image", "base64": "%%"}]}]',
            3,
            "messages[0]['content'][0]: expected base64, got '%%'",
        ),
        (
            '[{"role": "user", "content": [{"type": "image", "image": 7}]}]',
            3,
            "messages[0]['content'][0]: expected the path of an image, got int",
        ),
        ('[{"role": "user", "content": "\\ud800"}]', 3, "messages: expected text in UTF-8"),
    ],
)
def test_files_that_hold_no_conversation(explainer: FakeExplainer, content: str, code: int, message: str) -> None:
    Path("chat.json").write_text(content)
    assert_fails(run("explain", "--messages", "chat.json"), code, message)
    assert explainer.calls == []


def test_turns_that_are_not_there(explainer: FakeExplainer) -> None:
    path = _write(_turns())
    assert_fails(
        run("explain", "--messages", path, "--turn", "2"), 2, "chat.json: --turn: expected -1 (the next answer)"
    )
    assert_fails(run("explain", "--messages", path, "--turn", "1"), 2, "whose answer is not recorded")
    assert_fails(run("explain", "--messages", path, "--turn", "0", "--prefix", "A"), 2, "--prefix: expected none")
    assert_fails(run("explain", "--messages", path, "--contrast"), 2, "--contrast: expected messages with an image")
    assert_fails(run("explain", "--messages", path, "--fps", "1"), 2, "--fps: expected a video")
    assert_fails(run("explain", "--messages", "none.json"), 3, "none.json: no such file")
    assert_fails(run("explain", "--messages", path, "-o", ".", "--force"), 3, "would replace an input")
    assert explainer.calls == []


def test_pictures_of_a_conversation_have_the_same_limit(explainer: FakeExplainer, photo: Path) -> None:
    path = _write(_turns({"type": "image", "image": photo.name}))
    message = "messages[0]['content'][0]: photo.jpg: expected at most 100 pixels (--max-pixels), got 48 x 32"
    assert_fails(run("explain", "--messages", path, "--max-pixels", "100"), 3, message)


def test_two_turns_of_the_embedded_model(embedded: Explainer, tmp_path: Path) -> None:
    with Image.open(sample_scenes()[0]) as scene:
        scene.save(tmp_path / "scene.png")
    turns = _turns({"type": "image", "image": "scene.png"})
    path = _write(turns)
    options = ("--turn", "0", "--contrast", "-o", "out", "--json", "-q")
    result = run("explain", "--messages", path, *options)
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["results"]
    assert (entry["image"], entry["messages"]) == (None, load("out/chat").messages)
    assert (entry["answer"], entry["source"]) == ("A red circle.", "given")
    e = load("out/chat")
    assert e.contrast is not None
    for token, seen, blind in zip(entry["tokens"], e.contrast.with_images, e.contrast.without_images, strict=True):
        assert token["log_probability"] == {"with_images": float(seen), "without_images": float(blind)}
        assert token["grounding"]["gain"] == float(seen - blind)
    result = run("explain", "--messages", path, "-o", "next")
    assert result.exit_code == 0, result.stderr
    with Image.open("scene.png") as scene:
        turns[0]["content"][0]["image"] = scene.convert("RGB")
    made = embedded.explain(messages=turns, do_sample=False)
    assert load("next/chat").token_ids == made.token_ids
    assert result.stdout.splitlines()[1] == made.text.strip()
