"""Videos: files, frames and arrays as the frames that are shown, each the one that its number and time say."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tam_fast.models.sampling import Sampling, check_sampling, choose
from tam_fast.models.videos import Clip, load_videos

# Grey of each frame of a file: far enough apart for any codec.
STEP = 5


def frames(count: int, size: tuple[int, int] = (48, 32)) -> list[Image.Image]:
    return [Image.new("RGB", size, (STEP * index,) * 3) for index in range(count)]


def numbers(clip: Clip) -> list[int]:
    """Which frames a clip holds, by their grey."""
    return [round(float(np.asarray(frame).mean()) / STEP) for frame in clip.frames]


def write(
    path: Path,
    pictures: list[Image.Image],
    *,
    codec: str = "libx264",
    rate: Any = 10,
    pixels: str = "yuv420p",
    ticks: list[int] | None = None,
    gop: int = 4,
    turn: tuple[float, bool, bool] | None = None,
) -> Path:
    """Write pictures as a video; `ticks` are the times of each in milliseconds."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        try:
            stream = container.add_stream(codec, rate=rate)
        except (av.FFmpegError, ValueError, LookupError):
            pytest.skip(f"this PyAV has no encoder {codec}")
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gop
        stream.bit_rate = 4_000_000
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV writes no rotation")
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            if ticks is not None:
                frame.pts, frame.time_base = ticks[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 seconds at 10 frames a second, a key frame every 4, frames that lean on later ones."""
    return write(tmp_path_factory.mktemp("video") / "x.mp4", frames(40))


def test_two_frames_a_second_are_taken(video: Path) -> None:
    (clip,) = load_videos(video)
    assert clip.indices == [0, 5, 10, 15, 20, 25, 30, 35] == numbers(clip)
    assert clip.times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    assert (clip.fps, clip.total, clip.size) == (10.0, 40, (48, 32))
    assert clip.duration == pytest.approx(4.0)
    array = clip.array()
    assert (array.shape, array.dtype) == ((8, 32, 48, 3), np.uint8)
    metadata = clip.metadata()
    assert metadata.frames_indices == clip.indices
    assert metadata.timestamps == pytest.approx(clip.times)
    assert (metadata.total_num_frames, metadata.fps, metadata.width, metadata.height) == (40, 10.0, 48, 32)
    assert metadata.duration == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 1}, [0, 10, 20, 30]),
        ({"fps": 0.5}, [0, 20]),
        ({"fps": 0.01}, [0]),
        ({"fps": 5.0}, [*range(0, 40, 2)]),
        ({"fps": 25}, [*range(40)]),
        ({"num_frames": 1}, [0]),
        ({"num_frames": 3}, [0, 20, 39]),
        ({"num_frames": 40}, [*range(40)]),
    ],
)
def test_frames_are_those_that_were_asked_for(video: Path, options: dict[str, Any], expected: list[int]) -> None:
    told: list[tuple[int, int]] = []
    (clip,) = load_videos(video, **options, progress=lambda *numbers: told.append(numbers))
    assert clip.indices == expected == numbers(clip)
    assert clip.times == pytest.approx([index / 10 for index in expected])
    assert told == [(index + 1, len(expected)) for index in range(len(expected))]


FILES = [
    ("x.mp4", "mpeg4", "yuv420p"),
    ("x.avi", "mpeg4", "yuv420p"),
    ("x.mkv", "libx264", "yuv444p10le"),
    ("x.webm", "libvpx-vp9", "yuva420p"),
    ("x.mov", "prores_ks", "yuv422p10le"),
    ("x.ts", "libx264", "yuv420p"),
    ("x.mpg", "mpeg2video", "yuv420p"),
    ("x.m2v", "mpeg2video", "yuv420p"),
    ("x.h264", "libx264", "yuv420p"),
    ("x.avi", "rawvideo", "bgr24"),
    ("x.mkv", "ffv1", "gray16le"),
]


@pytest.mark.parametrize(("name", "codec", "pixels"), FILES)
def test_containers_and_pixel_formats(name: str, codec: str, pixels: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, frames(24), codec=codec, pixels=pixels, rate=25 if codec == "mpeg2video" else 8)
    for options, expected in (({"num_frames": 5}, [0, 6, 12, 17, 23]), ({"num_frames": 24}, [*range(24)])):
        for source in (path, path.read_bytes()):
            (clip,) = load_videos(source, **options)
            assert clip.indices == expected == numbers(clip)
            assert clip.total == 24
            assert clip.times[-1] == pytest.approx(23 / (clip.fps or 0), abs=0.01)


def test_uneven_frames_are_chosen_by_their_times(tmp_path: Path) -> None:
    ticks = [0, 40, 80, 900, 1000, 1040, 2600, 2640, 4000, 4100]
    path = write(tmp_path / "x.mkv", frames(10), ticks=ticks)
    (clip,) = load_videos(path, fps=1)
    assert clip.indices == [0, 4, 5, 7, 8] == numbers(clip)
    assert clip.times == pytest.approx([0, 1.0, 1.04, 2.64, 4.0])
    assert clip.metadata().timestamps == pytest.approx(clip.times, abs=2e-3), "as a processor will write them"
    assert load_videos(path, num_frames=10)[0].times == pytest.approx([tick / 1000 for tick in ticks])


def test_times_begin_with_the_first_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mkv", frames(6), ticks=[5000 + 500 * index for index in range(6)])
    (clip,) = load_videos(path)
    assert clip.times == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert clip.fps == pytest.approx(2.0)


TURNS = [(0, False, False), (90, False, False), (180, False, False), (-90, False, False), (0, True, False)]
TURNS += [(0, False, True), (90, True, False), (90, False, True)]


@pytest.mark.parametrize("turn", TURNS)
def test_turned_and_mirrored_frames_are_shown_upright(turn: tuple[float, bool, bool], tmp_path: Path) -> None:
    """A phone stores frames as they lie and says how to turn them: 90 is a quarter turn against the clock."""
    picture = Image.new("RGB", (48, 32), "black")
    picture.paste("red", (0, 0, 16, 16))
    picture.paste("white", (32, 0, 48, 16))
    path = write(tmp_path / "x.mp4", [picture] * 4, turn=turn)
    (clip,) = load_videos(path, num_frames=2)
    degrees, across, down = turn
    expected = picture.rotate(degrees, expand=True)
    if across:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if down:
        expected = expected.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert clip.size == expected.size
    for found in clip.frames:
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).mean() < 12


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animated_picture_is_a_video(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    durations = [100, 400, 500, 100, 900]
    first, *rest = frames(5)
    first.save(path, save_all=True, append_images=rest, duration=durations, lossless=True)
    for source in (path, str(path), path.read_bytes(), [path]):
        (clip,) = load_videos(source, num_frames=5)
        assert numbers(clip) == clip.indices == [0, 1, 2, 3, 4]
        assert clip.times == pytest.approx([0, 0.1, 0.5, 1.0, 1.1])
        assert clip.fps == pytest.approx(2.5)
    assert load_videos(path, fps=1)[0].indices == [0, 3]
    with pytest.raises(ValueError, match=r"^videos: .*at most 100 pixels a frame \(max_pixels\), got 48 x 32"):
        load_videos(path, max_pixels=100)


def forms(tmp_path: Path) -> dict[str, Any]:
    pictures = frames(6)
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    return {
        "pictures": pictures,
        "tuple": tuple(pictures),
        "paths": paths,
        "bytes": [path.read_bytes() for path in paths],
        "arrays": list(pixels),
        "tensors of floats": list(first / 255),
        "mixed": [pictures[0], paths[1], str(paths[2]), pixels[3], first[4] / 255, paths[5].read_bytes()],
        "array": pixels,
        "tensor": torch.from_numpy(pixels),
        "tensor of floats": first / 255,
        "array of floats": (first / 255).numpy().astype(np.float16),
        "frames": {"frames": pictures},
        "video": {"video": pixels, "fps": None},
    }


def test_every_form_of_frames_gives_the_same_clip(tmp_path: Path) -> None:
    for name, form in forms(tmp_path).items():
        (clip,) = load_videos(form)
        assert (numbers(clip), clip.indices, clip.total) == ([*range(6)], [*range(6)], 6), name
        assert clip.times == [0, 0.5, 1, 1.5, 2, 2.5]
        assert clip.fps is None
        assert clip.metadata().timestamps == clip.times
        assert load_videos([form, form], num_frames=2)[1].indices == [0, 5], name
        (known,) = load_videos(form, source_fps=4, fps=2)
        assert (known.indices, known.times, known.fps, known.duration) == ([0, 2, 4], [0, 0.5, 1.0], 4.0, 1.5), name


def test_a_list_is_one_video_of_frames_or_several_videos(video: Path, tmp_path: Path) -> None:
    pictures = frames(3)
    pictures[0].save(tmp_path / "a.png")
    assert len(load_videos([video, video])) == 2
    assert len(load_videos([video, pictures, {"frames": pictures, "fps": 8}, [tmp_path / "a.png"]])) == 4
    assert [clip.fps for clip in load_videos([pictures, {"frames": pictures, "fps": 8}], source_fps=3)] == [3.0, 8.0]
    assert len(load_videos([tmp_path / "a.png", tmp_path / "a.png"])[0].frames) == 2
    with pytest.raises(ValueError, match=r"^videos\[1\]: expected frames alone in a list, got a video among them"):
        load_videos([tmp_path / "a.png", video])
    with pytest.raises(ValueError, match=r"^videos\[2\]: expected videos alone in a list, got a frame among them"):
        load_videos([video, video, pictures[0]])
    with pytest.raises(ValueError, match=r"^videos\[0\]: expected a list of frames, got a list of videos"):
        load_videos([[video], [video]])


PIXELS = np.zeros((4, 6, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("videos", "options", "error", "message"),
    [
        (None, {}, ValueError, "at least one video, got none"),
        ([], {}, ValueError, "at least one video, got none"),
        ([[]], {}, ValueError, r"^videos\[0\]: expected at least one frame, got none"),
        (3, {}, TypeError, r"^videos: expected a video file, .* got int"),
        (io.BytesIO(b""), {}, TypeError, "got _io.BytesIO"),
        (Image.new("RGB", (4, 4)), {}, ValueError, "got one picture: give it as images, or as a list of frames"),
        ("https://example.com/a.mp4", {}, ValueError, "^videos: .* the URL 'https://example.com/a.mp4': download it"),
        (["s3://bucket/a.mp4"], {}, ValueError, r"^videos\[0\]: .* the URL"),
        ("data:video/mp4;base64,AAAA", {}, ValueError, "^videos: .* a data URI"),
        ("none.mp4", {}, FileNotFoundError, "^videos: expected a video file, got no file at 'none.mp4'"),
        (".", {}, FileNotFoundError, r"the folder '\.'"),
        (b"", {}, ValueError, "^videos: expected a video that can be read"),
        (b"no video at all" * 9, {}, ValueError, "^videos: expected a video that can be read"),
        (PIXELS.transpose(0, 3, 1, 2), {}, ValueError, r"\(4, 3, 6, 5\) of uint8: .*transpose\(0, 2, 3, 1\)"),
        (PIXELS / 255, {}, ValueError, r"\(F, 3, H, W\) of floats in \[0, 1\], got \(4, 6, 5, 3\) of float64"),
        (PIXELS[0, 0], {}, ValueError, r"\(5, 3\)"),
        (PIXELS[None], {}, ValueError, r"\(1, 4, 6, 5, 3\)"),
        (PIXELS[:0], {}, ValueError, r"\(0, 6, 5, 3\)"),
        (torch.full((2, 3, 4, 4), 2.0), {}, ValueError, "from 2 to 2"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], {}, ValueError, "one size, got 4 x 4 and 4 x 5"),
        ({"frames": PIXELS, "video": PIXELS}, {}, ValueError, "^videos: expected a mapping of 'video' or 'frames'"),
        ({"frames": PIXELS, "rate": 3}, {}, ValueError, "got 'frames', 'rate'"),
        ({"frames": PIXELS, "fps": 0}, {}, ValueError, r"^videos\['fps'\]: expected frames a second above 0, got 0"),
        ({"video": "a.mp4", "fps": 3}, {}, ValueError, "which has its own"),
        (PIXELS, {"fps": 2}, ValueError, "^fps: expected none, or the frames of videos along with their own rate"),
        (PIXELS, {"num_frames": 5}, ValueError, "^num_frames: expected at most 4, as many as videos has, got 5"),
        (PIXELS, {"num_frames": 0}, ValueError, "^num_frames: expected at least 1, got 0"),
        (PIXELS, {"num_frames": 2.0}, TypeError, "^num_frames: expected a whole number, got 2.0"),
        (PIXELS, {"num_frames": True}, TypeError, "^num_frames: "),
        (PIXELS, {"num_frames": 2, "fps": 1}, ValueError, "^num_frames: expected none with fps"),
        (PIXELS, {"fps": -1}, ValueError, "^fps: expected frames a second above 0, got -1"),
        (PIXELS, {"fps": float("nan")}, TypeError, "^fps: "),
        (PIXELS, {"fps": "2"}, TypeError, "^fps: expected a number of frames a second, got '2'"),
        (PIXELS, {"source_fps": float("inf")}, ValueError, "^source_fps: "),
        (PIXELS, {"max_pixels": 29}, ValueError, r"at most 29 pixels a frame \(max_pixels\), got 5 x 6 = 30"),
        (np.broadcast_to(np.uint8(0), (2, 1, 1, 3)), {"max_pixels": 0}, ValueError, "^max_pixels: "),
    ],
)
def test_what_is_no_video_is_refused(videos: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_videos(videos, **options)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_one_picture_is_no_video(tmp_path: Path) -> None:
    for name in ("x.png", "x.gif", "x.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            with pytest.raises(ValueError, match=r"^videos: expected a video, got one picture"):
                load_videos(source)


def test_a_file_that_is_cut_off_is_refused(video: Path, tmp_path: Path) -> None:
    """Wherever it is cut: without its index, within its frames, or between two of them."""
    whole = {"mp4": video.read_bytes()}
    whole["mkv"] = write(tmp_path / "x.mkv", frames(40)).read_bytes()
    whole["avi"] = write(tmp_path / "x.avi", frames(40), codec="mpeg4").read_bytes()
    for kind, data in whole.items():
        for part in (0.1, 0.3, 0.5, 0.6):
            path = tmp_path / f"cut.{kind}"
            path.write_bytes(data[: int(part * len(data))])
            with pytest.raises(ValueError, match=r"^videos: expected (a|a whole|at least one) (video|frame)") as caught:
                load_videos(path)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "kind", ["mp4", "gif", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("mkv", "avi"))]
)
def test_a_damaged_file_is_a_clip_or_a_value_error(kind: str, video: Path, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "gif":
        first, *rest = frames(9)
        first.save(path, save_all=True, append_images=rest, duration=200)
    else:
        write(path, frames(20), codec="mpeg4")
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(7)
    for index in range(60):
        data = whole.copy()
        data[rng.integers(0, data.size if index % 2 else min(600, data.size), 1 + index % 5)] = rng.integers(0, 256)
        clip, problem = None, "videos"
        try:
            (clip,) = load_videos(data[: rng.integers(1, data.size)].tobytes() if index % 5 == 4 else data.tobytes())
        except ValueError as error:
            problem = str(error)
        assert problem.startswith("videos")
        assert "\n" not in problem
        assert len(problem) < 400
        if clip is not None:
            assert len(clip.frames) == len(clip.times) == len(clip.indices) >= 1
            assert clip.times == sorted(clip.times)
            assert clip.times[0] == 0


def test_sound_is_no_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "x.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"^videos: expected a video, got a file of audio"):
        load_videos(tmp_path / "x.wav")


def test_large_frames_are_refused_before_they_are_decoded(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tam_fast.models import containers

    with pytest.raises(ValueError, match=r"^videos: .*at most 1535 pixels a frame \(max_pixels\), got 48 x 32 = 1536"):
        load_videos(video, max_pixels=1535)
    monkeypatch.setattr(containers, "_picture", lambda *_: pytest.fail("a frame was decoded"))
    monkeypatch.setattr(containers, "_MOST_PIXELS", 5000)
    for source in (video, frames(4)):
        with pytest.raises(ValueError, match=r"at most 5000 pixels in all frames .* got 48 x 32 = 1536 in each of"):
            load_videos(source)


def test_nothing_but_the_file_is_opened(tmp_path: Path) -> None:
    """A playlist names other files, and a URL."""
    for text in ("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "ffconcat version 1.0\nfile http://127.0.0.1:9/a\n"):
        path = tmp_path / "x.m3u8"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"^videos: expected a video"):
            load_videos(path)


def test_without_pyav_an_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "x.mp4").write_bytes(b"0" * 100)
    with pytest.raises(ImportError, match=r"^videos: .*pip install 'tam-fast\[video\]'"):
        load_videos(tmp_path / "x.mp4")
    assert len(load_videos(frames(3))[0].frames) == 3


def test_memory_holds_only_the_frames_that_are_kept(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the rest only those between a key frame and what is shown are decoded."""
    import tam_fast.models.containers as containers

    made: list[int] = []
    picture = containers._picture
    monkeypatch.setattr(containers, "_picture", lambda frame, name: made.append(1) or picture(frame, name))
    load_videos(video, num_frames=3)
    assert len(made) == 3


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.001, 2), min_size=1, max_size=200),
    st.one_of(st.none(), st.floats(0.05, 60)),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_choices_are_frames_in_order_that_are_seen_when_asked(
    gaps: list[float], fps: float | None, count: int | None
) -> None:
    times = [0.0, *np.cumsum(gaps).tolist()]
    duration = times[-1] + 0.1
    if count is not None:
        count, fps = min(count, len(times)), None
    chosen = choose(times, duration, Sampling(fps, count), "videos")
    assert chosen == sorted(set(chosen))
    assert 0 == chosen[0] <= chosen[-1] < len(times)
    if count is not None:
        assert chosen == np.linspace(0, len(times) - 1, count).round().astype(int).tolist() if count > 1 else [0]
    elif fps is not None:
        for moment in np.arange(0, duration - 1e-6, 1 / fps):
            shown = max(index for index, time in enumerate(times) if time <= moment + 1e-6)
            near = [index for index, time in enumerate(times) if abs(time - moment) < 1e-5]
            assert shown in chosen or set(near) & set(chosen)
    else:
        assert min(len(times), 4) <= len(chosen) <= 32


def test_times_that_are_far_apart_take_no_time() -> None:
    assert choose([0.0, 1e12, 2e12], 3e12, Sampling(2.0), "videos") == [0, 1, 2]


def test_a_rate_that_shows_too_many_frames_is_refused() -> None:
    times = [index / 30 for index in range(30_000)]
    with pytest.raises(ValueError, match=r"^fps: expected at most 768 frames of videos\[1\], got 1 frames a second"):
        choose(times, 1000.0, check_sampling(1, None), "videos[1]")
    assert len(choose(times, 1000.0, check_sampling(None, None), "videos")) == 32
    assert len(choose(times, 1000.0, check_sampling(0.75, None), "videos")) == 750


def test_the_real_clip(shared_data: Path) -> None:
    pytest.importorskip("av")
    (clip,) = load_videos(shared_data / "video" / "nasa.mp4")
    assert (clip.total, clip.fps, len(clip.frames)) == (325, 25.0, 26)
    assert clip.duration == pytest.approx(13.0)
    assert all(abs(time - index / 2) < 1 / 25 for index, time in enumerate(clip.times))
    (every,) = load_videos(shared_data / "video" / "nasa.mp4", num_frames=325)
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        assert frame.tobytes() == every.frames[index].tobytes(), "a frame is the same however it is reached"
