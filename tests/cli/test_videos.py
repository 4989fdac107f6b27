"""Videos that the command is given: alone, beside images, sampled, damaged."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest_cli import FakeExplainer, assert_fails, run
from PIL import Image

from tam_fast.cli.videos import is_video
from tam_fast.explain import Explainer
from tam_fast.explanation import load
from tam_fast.models.videos import load_videos


def test_names_of_videos() -> None:
    assert all(map(is_video, ("a.mp4", "b/A.MOV", "x.webm", "x.mkv", "x.avi")))
    assert not any(map(is_video, ("a.gif", "a.webp", "mp4", "a.mp4/x.png", "-")))


def test_a_video_is_shown_alone(explainer: FakeExplainer, film: Path, photo: Path) -> None:
    clip = film.with_name("clip.mp4")
    shutil.copy(film, clip)
    assert run("explain", clip, photo, "--video", film, "--num-frames", "3").exit_code == 0
    first, second, third = explainer.calls
    assert (first["images"], first["videos"], first["prompt"]) == ([], [clip], "Describe this video.")
    assert (len(second["images"]), second.get("videos"), second["prompt"]) == (1, None, "Describe this image.")
    assert third["videos"] == [film]
    assert {call["num_frames"] for call in explainer.calls} == {3}
    assert sorted(path.stem for path in Path("tam-fast-out").glob("*.json")) == ["clip", "film", "photo"]


def test_a_video_file(explainer: FakeExplainer, photo: Path) -> None:
    av = pytest.importorskip("av", reason="needs PyAV")
    with av.open("clip.mp4", "w") as container, Image.open(photo) as picture:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height = picture.size
        for packet in [*stream.encode(av.VideoFrame.from_image(picture.convert("RGB"))), *stream.encode()]:
            container.mux(packet)
    assert run("explain", "clip.mp4", "-q").exit_code == 0
    assert explainer.calls[0]["videos"] == [Path("clip.mp4")]
    Path("half.mp4").write_bytes(Path("clip.mp4").read_bytes()[:300])
    assert_fails(run("explain", "half.mp4"), 3, "half.mp4: expected a video that can be read")


def test_images_and_videos_together(explainer: FakeExplainer, film: Path, photo: Path) -> None:
    result = run("explain", "--video", film, photo, "--together", "--json", "--fps", "1")
    assert result.exit_code == 0, result.stderr
    (call,) = explainer.calls
    assert (len(call["images"]), call["videos"], call["fps"]) == (1, [film], 1.0)
    assert json.loads(result.stdout)["results"][0]["image"] == [str(photo), str(film)]


def test_an_animated_picture_is_an_image_unless_it_is_said(explainer: FakeExplainer, film: Path) -> None:
    assert run("explain", film, "-q").exit_code == 0
    (call,) = explainer.calls
    assert isinstance(call["images"][0], Image.Image)
    assert "videos" not in call


def test_a_video_on_standard_input(explainer: FakeExplainer, film: Path) -> None:
    assert run("explain", "--video", "-", "-q", input=film.read_bytes()).exit_code == 0
    assert explainer.calls[0]["videos"] == [film.read_bytes()]
    assert_fails(run("explain", "--video", "-", input=b""), 3, "-: not a video: standard input is empty")


def test_videos_that_cannot_be_used(explainer: FakeExplainer, film: Path, photo: Path) -> None:
    Path("text.mp4").write_text("no video\n" * 50)
    for options, code, message in (
        (("none.mp4",), 3, "none.mp4: no such file"),
        (("text.mp4",), 3, "text.mp4: expected "),
        (("--video", photo), 3, "photo.jpg: expected a video, got one picture"),
        (("--video", "."), 3, ".: expected a video file, got a folder"),
        (("--video", "https://example.com/a.mp4"), 3, "got the URL 'https://example.com/a.mp4': download it"),
        (("--video", film, "--num-frames", "7"), 2, "film.gif: --num-frames: expected at most 6, as many as there are"),
        (("--video", film, "--max-pixels", "100"), 3, "pixels a frame (--max-pixels), got 64 x 48 = 3072"),
        (("--video", "none.gif", photo, "--together"), 3, "none.gif: no such file"),
    ):
        result = run("explain", *options)
        assert_fails(result, code, message)
    assert explainer.calls == []
    result = run("explain", "text.mp4", photo, "-q")
    assert (result.exit_code, len(explainer.calls)) == (3, 1)


def test_damage_that_shows_in_the_last_frame_is_the_files(
    explainer: FakeExplainer, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the model's: the library finds it when the model is there, and the exit code is still 3."""
    explainer.error = ValueError("videos[0]: expected a video, got one whose frames cannot be read (x)")

    def refuse(video: object, *, num_frames: int | None = None, **_: object) -> object:
        if num_frames == 1:
            return load_videos(film, num_frames=1)
        raise ValueError("videos: expected a whole video, got one that is damaged at 1.0 seconds")

    monkeypatch.setattr("tam_fast.models.videos.load_videos", refuse)
    assert_fails(run("explain", "--video", film), 3, "film.gif: expected a whole video, got one that is damaged at 1.0")


def test_without_pyav(explainer: FakeExplainer, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    Path("clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert_fails(run("explain", "clip.mp4"), 3, "pip install 'tam-fast[video]'")


def test_a_video_is_never_replaced(explainer: FakeExplainer, film: Path) -> None:
    picture = film.with_suffix(".png")
    shutil.copy(film, picture)
    assert_fails(run("explain", "--video", picture, "-o", ".", "--force"), 3, "would replace an input")


def test_a_model_that_takes_no_videos(models: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film.parent)
    assert_fails(run("explain", "--video", film, "--model", models / "llava"), 4, "film.gif: videos: ")


def test_frames_and_times_of_a_real_model(embedded: Explainer, film: Path) -> None:
    """The embedded model has seen no videos: its answer is meaningless, its maps are made."""
    options = ("--num-frames", "4", "--answer", "A red circle.", "-o", "out")
    result = run("explain", "--video", film, *options)
    assert result.exit_code == 0, result.stderr
    e = load("out/film")
    assert [len(video.frames) for video in e.videos] == [4]
    head, sentence, titles, *rows = result.stdout.splitlines()
    assert "; cells 2 x " in head
    assert sentence == "A red circle."
    assert titles.split()[:7] == ["word", "strength", "peak", "cell", "pixel", "frame", "time"]
    peak = e.peak("circle")
    assert rows[2].split()[4:7] == [str(peak.frame), f"{peak.time:.2f}", "s"]
    document = json.loads(run("explain", "--video", film, *options, "--json", "-q").stdout)
    (entry,) = document["results"]
    assert entry["videos"] == [{"frames": 4, "times": e.videos[0].times}]
    assert [grid["frame"] for grid in entry["grids"]] == [0, 1]
    found = entry["words"][2]["peak"]
    assert (found["video"], found["frame"], found["time"]) == (0, peak.frame, peak.time)
    with Image.open("out/film.png") as sheet:
        assert sheet.tobytes() == e.sheet().tobytes()
