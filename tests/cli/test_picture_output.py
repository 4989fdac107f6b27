"""Pictures and films that the command writes as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest_cli import FakeExplainer, assert_fails, run
from pages import film as moving
from PIL import Image

from tam_fast.explain import Explainer
from tam_fast.explanation import Explanation


class Watching(FakeExplainer):
    """Has seen a dog run in every video."""

    def explain(self, images: Any, **options: Any) -> Explanation:
        self.calls.append(options)
        return moving()


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch, explainer: FakeExplainer) -> Watching:
    fake = Watching()
    monkeypatch.setattr("tam_fast.cli.explain.load_explainer", lambda *_: fake)
    return fake


@pytest.mark.parametrize(("name", "kind"), [("a.PNG", "PNG"), ("a.jpeg", "JPEG")])
def test_a_picture(explainer: FakeExplainer, photo: Path, name: str, kind: str) -> None:
    result = run("explain", photo, "-o", name)
    assert result.exit_code == 0, result.stderr
    with Image.open(name) as made:
        assert (made.format, made.width) == (kind, 1600)
    assert {path.name for path in Path().iterdir()} == {"photo.jpg", name}
    assert name in result.stdout
    # Its own file is replaced, another's is not.
    assert run("explain", photo, "-o", name).exit_code == 0
    Image.new("RGB", (4, 4)).save(name)
    assert_fails(run("explain", photo, "-o", name), 3, f"{name} exists and is not of an earlier run")


def test_a_film(watching: Watching, film: Path) -> None:
    result = run("explain", "--video", film, "--word", "runs", "-o", "a.gif")
    assert result.exit_code == 0, result.stderr
    with Image.open("a.gif") as made:
        assert made.n_frames == 8
    assert Path("a.gif").read_bytes() == moving().film(".gif", "runs")
    assert run("explain", "--video", film, "-o", "a.gif").exit_code == 0
    assert Path("a.gif").read_bytes() == moving().film(".gif")
    before = film.read_bytes()
    assert_fails(run("explain", "--video", film, "-o", film, "--force"), 3, "would replace an input")
    assert film.read_bytes() == before


def test_a_film_as_mp4(watching: Watching, film: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    assert run("explain", "--video", film, "-o", "a.MP4").exit_code == 0
    with av.open("a.MP4") as container:
        assert len(list(container.decode(video=0))) == 8
    assert run("explain", "--video", film, "-o", "a.MP4").exit_code == 0
    Path("a.MP4").write_bytes(b"\0\0\0\x08ftyp mine")
    assert_fails(run("explain", "--video", film, "-o", "a.MP4"), 3, "a.MP4 exists and is not of an earlier run")


def test_what_one_file_cannot_hold(explainer: FakeExplainer, photo: Path, film: Path, monkeypatch: Any) -> None:
    message = "--output: expected a question about a video for the film 'a.gif', got none"
    assert_fails(run("explain", photo, "-o", "a.gif"), 2, message)
    message = "--output: expected an image or a video for the picture 'a.png', got text alone"
    assert_fails(run("explain", "--text-only", "-p", "What?", "-o", "a.png"), 2, message)
    Path("chat.json").write_text('[{"role": "user", "content": "What?"}]')
    assert_fails(run("explain", "--messages", "chat.json", "-o", "a.png"), 2, message)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = (
        "--output: expected PyAV for MP4 (pip install 'tam-fast[video]'), or a name that ends in .gif, got 'a.mp4'"
    )
    assert_fails(run("explain", "--video", film, "-o", "a.mp4"), 2, message)
    assert explainer.calls == []
    assert {path.name for path in Path().iterdir()} == {"photo.jpg", "film.gif", "chat.json"}


@pytest.mark.long
def test_a_film_of_the_embedded_model(embedded: Explainer, film: Path) -> None:
    result = run("explain", "--video", film, "--max-new-tokens", "6", "-o", "a.gif")
    assert result.exit_code == 0, result.stderr
    with Image.open("a.gif") as made:
        assert made.n_frames >= 3
