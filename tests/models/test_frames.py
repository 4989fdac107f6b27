"""The video part of processors against the video processors of transformers, and its frames' cells against pixels."""

from __future__ import annotations

import builtins
import copy
import inspect
import json
import pickle
from importlib.util import find_spec
from typing import Any

import clips
import numpy as np
import pytest
import standin
import torch
import torch.nn.functional as F
from families import build
from families.native import QWEN_CHAT
from families.tools import version
from painting import flat, given
from PIL import Image

import tam_fast
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.frames import VideoPart, process_videos, video_part
from tam_fast.models.patches import resize
from tam_fast.models.processors import image_only_processor_class, load_processor
from tam_fast.models.videos import Clip, load_videos

MODULES = {
    "Qwen2VL": "qwen2_vl",
    "Qwen3VL": "qwen3_vl",
    "CohereCompass": "cohere_compass",
    "Cosmos3Edge": "cosmos3_edge",
    "Glm4v": "glm4v",
    "Glm46V": "glm46v",
    "Glmga": "glmga",
    "VideoLlama3": "video_llama_3",
    "Gemma4": "gemma4",
    "LlavaOnevision": "llava_onevision",
    "InternVL": "internvl",
}
WHOLE = ("LlavaOnevision", "InternVL")
FUNCTIONS = "torchvision.transforms.v2.functional"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a video processor of transformers, torchvision or not."""

    def resize(video: torch.Tensor, size: Any, interpolation: Any, antialias: bool) -> torch.Tensor:
        """As torchvision does it on a CPU; the stand-in knows floats alone, and no dimension for frames."""
        frames = video.flatten(0, -4)
        if tuple(frames.shape[-2:]) == tuple(size):
            return video
        if getattr(interpolation, "name", "") == "BICUBIC" or interpolation == 3:
            made = F.interpolate(frames, tuple(size), mode="bicubic", antialias=antialias)
        else:
            made = standin._resize(frames, size, interpolation, antialias)
        return made.unflatten(0, video.shape[:-3])

    def make(name: str, **settings: Any) -> Any:
        from transformers import image_processing_backends, video_processing_utils

        module = MODULES[name]
        if find_spec("torchvision") is None:
            # What modules import of torchvision only where it is, and then use all the same.
            monkeypatch.setattr(builtins, "tvF", standin._modules()[FUNCTIONS], raising=False)
        try:
            cls = standin.take(f"{module}.video_processing_{module}", f"{name}VideoProcessor")
        except (ImportError, AttributeError) as error:
            pytest.skip(f"this version of transformers has no {name}VideoProcessor: {error}")
        if find_spec("torchvision") is None:
            functions = image_processing_backends.tvF
            monkeypatch.setattr(video_processing_utils, "tvF", functions, raising=False)
            monkeypatch.setattr(builtins, "tvF", functions, raising=False)
            monkeypatch.setattr(functions, "resize", resize)
        return cls(**settings)

    return make


def moving(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames (F, H, W, 3) of blocks of colour that change from frame to frame, with fine noise over them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 236, (frames, -(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    large = blocks.repeat(10, axis=1).repeat(10, axis=2)[:, :height, :width]
    return large + rng.integers(0, 20, large.shape, dtype=np.uint8)


def both(real: Any, name: str, videos: list[np.ndarray], settings: dict[str, Any]) -> tuple[Any, Any]:
    """What the two make of videos."""
    options = {"do_sample_frames": False, "return_tensors": "pt"}
    return real(name, **settings)(videos, **options), VideoPart(f"{name}VideoProcessor", settings)(videos, **options)


def same(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    for name in set(expected) - {"video_metadata"}:
        if name == "pixel_values_videos":
            difference = (found[name] - expected[name]).abs()
            assert found[name].shape == expected[name].shape
            assert found[name].dtype == expected[name].dtype
            assert float(difference.max()) <= 1e-6 * max(1.0, float(expected[name].abs().max()))
        else:
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(expected[name])), name


@pytest.mark.parametrize("name", MODULES)
def test_frames_that_are_not_resized_are_the_same(real: Any, name: str) -> None:
    side = VideoPart(f"{name}VideoProcessor").settings.get("patch_size", 14) * 2
    videos = [moving(4, 2 * side, 3 * side), moving(3, 4 * side, 2 * side, 1)]
    settings: dict[str, Any] = {"size": {"shortest_edge": side**2, "longest_edge": 10**8}}
    if name in WHOLE:
        settings = {"size": {"height": 40, "width": 30}}
        videos = [moving(4, 40, 30), moving(4, 40, 30, 1)]
    if name == "Gemma4":
        settings = {}
        videos = [moving(4, 7 * 48, 10 * 48), moving(3, 8 * 48, 8 * 48, 1)]
    expected, found = both(real, name, videos, settings)
    same(found, expected)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("frames", "height", "width"), [(2, 50, 90), (5, 203, 120), (4, 17, 130)])
def test_frames_that_are_resized_are_the_same(real: Any, name: str, frames: int, height: int, width: int) -> None:
    settings: dict[str, Any] = {"size": {"shortest_edge": 60 * 60, "longest_edge": 60_000}}
    if name in WHOLE:
        settings = {"size": {"height": 56, "width": 42}}
    if name == "Gemma4":
        settings = {"max_soft_tokens": 140}
    expected, found = both(real, name, [moving(frames, height, width)], settings)
    same(found, expected)


@pytest.mark.parametrize("resample", [2, 3])
def test_resizing_is_the_same_either_way(real: Any, resample: int) -> None:
    for size in ({"height": 33, "width": 70}, {"shortest_edge": 25}):
        expected, found = both(real, "LlavaOnevision", [moving(2, 90, 50)], {"size": size, "resample": resample})
        same(found, expected)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", [(33, 70), (120, 31), (90, 50), (9, 9)])
def test_frames_are_resized_as_pillow_resizes_pictures(resample: Image.Resampling, size: tuple[int, int]) -> None:
    """Within a level of 8 bits, but for where bicubic overshoots, and is clipped between its two passes."""
    video = moving(3, 90, 50)
    found = resize(torch.from_numpy(video).permute(0, 3, 1, 2), size, int(resample)).permute(0, 2, 3, 1).numpy()
    expected = np.stack([np.asarray(Image.fromarray(frame).resize(size[::-1], resample)) for frame in video])
    difference = np.abs(found.astype(int) - expected)
    assert int(difference.max()) <= (8 if resample == Image.Resampling.BICUBIC else 1)
    assert float((difference > 1).mean()) < 0.02


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen3VL"])
@pytest.mark.parametrize("capped", [True, False])
def test_budgets_of_long_clips_are_the_same(real: Any, name: str, capped: bool) -> None:
    settings = {"cap_pixels_per_frame": capped, "max_video_tokens": 12 if name == "Qwen3VL" else 40}
    settings["size"] = {"shortest_edge": 1000, "longest_edge": 400_000 if name == "Qwen3VL" else 30_000}
    expected, found = both(real, name, [moving(11, 120, 150)], settings)
    same(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"min_pixels": 5000, "max_pixels": 9000},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.4], "rescale_factor": 1 / 127.5},
        {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 3},
    ],
)
def test_settings_mean_the_same(real: Any, settings: dict[str, Any]) -> None:
    size = {"shortest_edge": 4000, "longest_edge": 20000}
    expected, found = both(real, "Qwen2VL", [moving(5, 80, 96)], {"size": size, **settings})
    same(found, expected)


@pytest.mark.parametrize("name", MODULES)
def test_defaults_are_those_of_the_class(real: Any, name: str) -> None:
    if version() < (5, 23):
        pytest.skip("written after the classes of transformers 5.23")
    theirs = real(name).to_dict()
    ours = VideoPart(f"{name}VideoProcessor").to_dict()
    assert ours.pop("video_processor_type") == f"{name}VideoProcessor"
    for key, value in ours.items():
        expected = theirs.get(key, getattr(real(name), key, None))
        if isinstance(value, (dict, list)):
            value, expected = type(value)(value), type(value)(expected)
        assert value == expected, key
    saved = json.loads(real(name).to_json_string())
    assert VideoPart(f"{name}VideoProcessor", saved).settings == VideoPart(f"{name}VideoProcessor").settings


def test_video_llama_leaves_out_the_same_cells(real: Any) -> None:
    video = moving(1, 56, 84).repeat(4, axis=0)
    video[2, :28, :28] = 250
    settings = {"size": {"shortest_edge": 28 * 28, "longest_edge": 10**7}}
    expected, found = both(real, "VideoLlama3", [video, moving(1, 56, 56)], settings)
    same(found, expected)
    assert found["video_compression_mask"][: 4 * 6].view(4, 6).sum(1).tolist() == [6, 1, 1, 1]
    every = VideoPart("VideoLlama3VideoProcessor", settings)([video], use_token_compression=False)
    assert bool(every["video_compression_mask"].all())


def _clip(frames: int, painted: int | None = None, box: Any = (0, 0, 0, 0), fps: float | None = 4.0) -> Clip:
    return load_videos(clips.clip(frames, painted, box), source_fps=fps)[0]


def _with_videos(name: str, **settings: Any) -> Any:
    """A family of tests/families whose processor takes videos."""
    built = build(name)
    processor = copy.copy(built.processor)
    part = video_part(type(processor).__name__, processor.image_processor, settings)
    assert part is not None
    processor.video_processor = part
    if name in ("qwen2_vl", "qwen2_5_vl"):  # whose template in tests knows images alone
        processor.chat_template = QWEN_CHAT
    if name == "internvl":
        part.size = dict(processor.image_processor.size)
    if name == "llava_onevision":
        side = built.model.config.vision_config.image_size
        part.size = {"height": side, "width": side}
    return built, processor


SMALL = {"size": {"shortest_edge": 28 * 28, "longest_edge": 60_000}}
LARGE = {"size": {"shortest_edge": 6000, "longest_edge": 100_000}}  # of a whole clip
# Families, what their video part is set to, and how many frames are in a cell.
SHOWN = [
    ("qwen2_vl", SMALL, 2),
    ("qwen2_5_vl", SMALL, 2),
    ("qwen3_vl", LARGE, 2),
    ("llava_onevision", {}, 1),
    ("glm4v", LARGE, 2),
    ("glm46v", LARGE, 2),
    ("internvl", {}, 1),
    ("gemma4", {}, 1),
    ("cosmos3_edge", LARGE, 1),
    ("video_llama_3.merged", SMALL, 1),
]


@pytest.mark.parametrize(("name", "settings", "pairs"), SHOWN)
def test_prompts_are_those_of_the_real_video_processor(
    real: Any, name: str, settings: dict[str, Any], pairs: int
) -> None:
    """And so is all else that the model is given."""
    _, processor = _with_videos(name, **settings)
    given_clips = [_clip(4, 1, (5, 5, 60, 30), fps=2.5), _clip(5 if pairs == 2 else 4)]
    arrays, options = process_videos(processor, given_clips)
    found = clips.prompted(processor, arrays, **options)
    part = processor.video_processor
    own = {key: value for key, value in part.to_dict().items() if value is not None and key != "video_processor_type"}
    processor.video_processor = real(part.name.removesuffix("VideoProcessor"), **own)
    expected = clips.prompted(processor, arrays, **options)
    assert set(found) == set(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(found[key].double(), value.double(), atol=1e-6), key
    assert torch.equal(found["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(("name", "settings", "pairs"), SHOWN)
def test_a_frame_moves_its_own_cells(name: str, settings: dict[str, Any], pairs: int) -> None:
    """Each temporal index is a grid, and what is painted in one frame is seen there and nowhere else."""
    built, processor = _with_videos(name, **settings)
    model = flat(built)
    known = inspect.signature(type(model).forward).parameters

    def seen(clip: Clip) -> tuple[dict[str, Any], torch.Tensor]:
        arrays, options = process_videos(processor, [clip])
        found = clips.prompted(processor, arrays, **options)
        return found, given(model, {key: value for key, value in found.items() if key in known})

    count = 5 if pairs == 2 else 3
    found, base = seen(_clip(count))
    layout = tam_fast.layout_of(built.model.config, processor, found, [])
    assert [(grid.kind, grid.source, grid.frame) for grid in layout.grids] == [
        ("video", 0, index) for index in range(-(-count // pairs))
    ]
    for frame in range(count):
        grid = layout.grids[frame // pairs]
        row, column = grid.height - 1, grid.width // 2
        x, y = ((column + 0.5) / grid.width * clips.WIDTH, (row + 0.5) / grid.height * clips.HEIGHT)
        half = max(2, clips.WIDTH // grid.width // 4)
        box = (max(0, int(x) - half), max(0, int(y) - half), int(x) + half, int(y) + half)
        change = (seen(_clip(count, frame, box))[1] - base).norm(dim=1)
        assert int(change.argmax()) == int(grid.positions[row * grid.width + column]), frame
        outside = torch.ones_like(change, dtype=torch.bool)
        outside[grid.positions] = False
        assert float(change[outside].max()) <= 1e-5 * float(change.max())


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([0.0, 0.5, 1.0, 1.5], ["<0.2 seconds>", "<1.2 seconds>"]),
        ([0.0, 0.1, 0.9, 4.3, 7.0], ["<0.1 seconds>", "<2.6 seconds>", "<7.0 seconds>"]),
    ],
)
def test_times_in_prompts_are_those_of_the_clip(times: list[float], shown: list[str]) -> None:
    """Also of a clip whose frames come unevenly."""
    _, processor = _with_videos("qwen3_vl", **LARGE)
    frames = [Image.fromarray(frame) for frame in clips.clip(len(times))]
    clip = Clip(frames, times, 10.0, [round(10 * time) for time in times], 71)
    arrays, options = process_videos(processor, [clip])
    ids = clips.prompted(processor, arrays, **options)["input_ids"].flatten()
    text = processor.tokenizer.decode(ids)
    assert [part + "seconds>" for part in text.replace("<|", " ").split("seconds>")[:-1]] != []
    assert [f"<{part.rpartition('<')[2]}seconds>" for part in text.split("seconds>")[:-1]] == shown


def test_several_videos_keep_their_frames_and_times() -> None:
    built, processor = _with_videos("qwen3_vl", **LARGE)
    given_clips = [_clip(4, fps=2.0), _clip(6, fps=None)]
    arrays, options = process_videos(processor, given_clips)
    assert [array.shape for array in arrays] == [(4, 40, 70, 3), (6, 40, 70, 3)]
    assert options["videos_kwargs"]["do_sample_frames"] is False
    found = clips.prompted(processor, arrays, **options)
    layout = tam_fast.layout_of(built.model.config, processor, found)
    assert [(grid.source, grid.frame) for grid in layout.grids] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert given_clips[1].metadata().frames_indices == [0, 1, 2, 3, 4, 5], "a processor's padding is its own affair"


@pytest.mark.parametrize(("shown", "seconds"), [([_clip(5)], 0.5), ([_clip(5), _clip(3, fps=2.0)], 2 * 2 / 6)])
def test_omni_processors_are_told_the_rate(shown: list[Clip], seconds: float) -> None:
    """Of frames that are shown; they know one for all videos."""
    _, processor = _with_videos("qwen2_5_omni_thinker", **SMALL)
    arrays, options = process_videos(processor, shown)
    found = clips.prompted(processor, arrays, **options)
    assert torch.as_tensor(found["video_second_per_grid"]).tolist() == pytest.approx([seconds] * len(shown))


def test_processors_without_a_video_part_say_so() -> None:
    from conftest_models import llava_processor

    with pytest.raises(ModelNotSupportedError, match=r"^videos: .*LlavaProcessor"):
        process_videos(llava_processor(), [_clip(2)])
    assert video_part("Ernie4_5_VLMoeProcessor") is None
    with pytest.raises(ValueError, match=r"^name: "):
        VideoPart("Qwen2VLProcessor")


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        (["a.mp4"], {}, "^videos: expected frames, got a path"),
        ([clips.clip(2)], {"do_sample_frames": True}, "^do_sample_frames: expected False"),
        ([clips.clip(1)], {}, "^videos: expected at least 2 frames"),
        ([np.zeros((2, 1, 400, 3), np.uint8)], {}, "^videos: expected a longer side"),
        ([clips.clip(2).astype(np.float32)], {}, r"^videos: expected an array \(F, H, W, 3\)"),
        ([clips.clip(2)], {"do_resize": False}, "^videos: expected frames of multiples of 32 pixels"),
    ],
)
def test_what_no_frames_can_be_made_of_is_refused(videos: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoPart("Qwen3VLVideoProcessor")(videos, **options)


def test_a_saved_processor_keeps_its_video_part(tmp_path: Any) -> None:
    from conftest_models import QWEN_TEMPLATE, byte_tokenizer, qwen_processor

    images = qwen_processor().image_processor
    settings = {"size": {"shortest_edge": 3136, "longest_edge": 9999}, "image_mean": [0.1, 0.2, 0.3]}
    processor = image_only_processor_class("Qwen2VLProcessor")(
        images, byte_tokenizer(), chat_template=QWEN_TEMPLATE, video_processor=settings
    )
    processor.save_pretrained(tmp_path / "nested")
    for other in (load_processor(tmp_path / "nested"), copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert other.video_processor.settings == processor.video_processor.settings
        assert other.video_processor.size == {"shortest_edge": 3136, "longest_edge": 9999}


def test_the_real_folder_takes_videos(shared_data: Any) -> None:
    """Its limits are those of its images, as transformers reads a folder that is older than video processors."""
    processor = load_processor(shared_data / "processors" / "qwen2vl")
    clip = load_videos([Image.new("RGB", (280, 140), (value, 0, 0)) for value in range(0, 250, 50)])[0]
    arrays, options = process_videos(processor, [clip])
    found = clips.prompted(processor, arrays, **options)
    assert found["video_grid_thw"].tolist() == [[3, 10, 20]]
    assert int((found["input_ids"] == processor.video_token_id).sum()) == 3 * 5 * 10
    expected = processor.image_processor([clip.frames[4]], return_tensors="pt")["pixel_values"]
    assert torch.allclose(found["pixel_values_videos"][400:], expected, atol=1e-5), (
        "the last is repeated, as an image is"
    )
