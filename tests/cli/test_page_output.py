"""The page that the command writes: beside the other results, or alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest_cli import FakeExplainer, assert_fails, run, save_image


def test_the_last_line_says_what_to_open(explainer: FakeExplainer, photo: Path) -> None:
    result = run("explain", photo, "-o", "out")
    assert result.stdout.splitlines()[-1] == f"open {Path('out/photo.html')}"
    page = Path("out/photo.html").read_text(encoding="utf-8")
    assert "<title>photo.jpg</title>" in page
    assert str(photo.parent.resolve()) not in page
    assert run("explain", photo, "-q", "-o", "out").stdout == ""


def test_several_pages(explainer: FakeExplainer, photo: Path) -> None:
    other = save_image(photo.parent / "other.jpg")
    lines = run("explain", photo, other, "-o", "out").stdout.splitlines()
    assert lines[-1] == f"open {Path('out/photo.html')} (and 1 more beside it)"
    assert Path("out/other.html").exists()


def _colour_maps(path: Path) -> list[str]:
    menu = path.read_text(encoding="utf-8").split('name="cmap"')[1].split("</select>")[0]
    return re.findall('<option value="([^"]*)"', menu)


@pytest.mark.parametrize("name", ["answer.html", "answer.HTM"])
def test_one_file(explainer: FakeExplainer, photo: Path, name: str) -> None:
    before = set(Path().iterdir())
    result = run("explain", photo, "-o", name, "--cmap", "viridis")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in set(Path().iterdir()) - before} == {name}
    assert result.stdout.splitlines()[-1] == f"open {name}"
    assert _colour_maps(Path(name)) == ["viridis", "inferno", "jet"]
    # Its own file is replaced.
    assert run("explain", photo, "-o", name).exit_code == 0
    assert _colour_maps(Path(name)) == ["inferno", "viridis", "jet"]


def test_another_file_stays(explainer: FakeExplainer, photo: Path) -> None:
    Path("mine.html").write_text("<p>mine</p>")
    message = "mine.html exists and is not of an earlier run; choose another name with -o, or --force"
    assert_fails(run("explain", photo, "-o", "mine.html"), 3, message)
    assert Path("mine.html").read_text() == "<p>mine</p>"
    assert run("explain", photo, "-o", "mine.html", "--force").exit_code == 0
    assert "tam_fast" in Path("mine.html").read_text()


def test_one_file_is_one_explanation(explainer: FakeExplainer, photo: Path) -> None:
    other = save_image(photo.parent / "other.jpg")
    message = "--output: expected a folder, or one explanation, got 'a.html' for 2 explanations"
    assert_fails(run("explain", photo, other, "-o", "a.html"), 2, message)
    assert not Path("a.html").exists()
    assert explainer.calls == []
    assert run("explain", photo, other, "--together", "-o", "a.html").exit_code == 0
    assert "<title>photo.jpg, other.jpg</title>" in Path("a.html").read_text()


def test_places_that_take_no_page(explainer: FakeExplainer, photo: Path) -> None:
    message = "--output: expected a file in a folder that exists, got one in 'none'"
    assert_fails(run("explain", photo, "-o", "none/a.html"), 3, message)
    assert not Path("none").exists()
    # A folder of such a name is a folder.
    Path("folder.html").mkdir()
    assert run("explain", photo, "-o", "folder.html").exit_code == 0
    assert Path("folder.html/photo.html").exists()


def test_an_input_is_not_replaced_by_a_page(explainer: FakeExplainer, photo: Path) -> None:
    data = photo.read_bytes()
    trap = photo.rename("photo.html")
    assert_fails(run("explain", trap, "-o", trap, "--force"), 3, "would replace an input; choose another name with -o")
    assert Path("photo.html").read_bytes() == data
