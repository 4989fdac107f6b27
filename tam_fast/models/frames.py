"""The video part of a processor, on a machine without torchvision: :class:`VideoPart`, :func:`process_videos`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from tam_fast.models.arrays import read_pixels
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.video_recipes import INHERENT, RECIPES, Settings
from tam_fast.models.videos import Clip

if TYPE_CHECKING:
    import numpy as np

__all__ = ["VideoPart", "process_videos", "video_part"]

# The video processor that goes with a processor, as transformers' auto classes say.
_OF_PROCESSOR: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "Qwen2VLProcessor",
                "Qwen2_5_VLProcessor",
                "Exaone4_5_Processor",
                "HyperCLOVAXVisionV2Processor",
                "Qwen2_5OmniProcessor",
                "Qwen3OmniMoeProcessor",
            ),
            "Qwen2VLVideoProcessor",
        ),
        **dict.fromkeys(("Qwen3VLProcessor", "Lfm3VlProcessor", "Dots3NoteProcessor"), "Qwen3VLVideoProcessor"),
        **{
            f"{name}Processor": f"{name}VideoProcessor"
            for name in (
                "CohereCompass",
                "Cosmos3Edge",
                "Gemma4",
                "Glm4v",
                "Glm46V",
                "InternVL",
                "LlavaOnevision",
                "VideoLlama3",
            )
        },
    }
)

# Of the vision tower: where nothing else says, they are those of the image processor.
_SHARED = ("patch_size", "temporal_patch_size", "merge_size", "pooling_kernel_size")


class VideoPart:
    """In place of a video processor of transformers, which needs torchvision: the same frames, resized by torch alone.

    It shows every frame that it is given. Settings are attributes, such as ``size`` and ``patch_size``, and may be set.

    Parameters
    ----------
    name : str
        The class of transformers whose place it takes, such as ``"Qwen2VLVideoProcessor"``.
    settings : mapping
        What is different from that class's own settings.

    Raises
    ------
    ValueError
        If there is nothing in place of that class.
    """

    def __init__(self, name: str, settings: Settings = MappingProxyType({})) -> None:
        if name not in RECIPES:
            raise ValueError(f"name: expected one of {', '.join(RECIPES)}, got {name!r}")
        recipe = RECIPES[name]
        self.name = name
        self.model_input_names = list(recipe.names)
        self._known = tuple(recipe.settings)
        known = set(recipe.settings) - set(INHERENT)
        given = {key: value for key, value in settings.items() if value is not None and key in known}
        merged = copy.deepcopy({**recipe.settings, **given})
        merged["size"] = _sized(merged["size"], recipe.settings["size"], settings)
        for key, value in merged.items():
            setattr(self, key, value)

    @property
    def settings(self) -> dict[str, Any]:
        """What it is set to."""
        return {key: getattr(self, key) for key in self._known}

    def to_dict(self) -> dict[str, Any]:
        """Return its settings as a folder holds them, from which transformers makes the video processor itself."""
        own = {key: value for key, value in self.settings.items() if key not in INHERENT and value != {}}
        return {**copy.deepcopy(own), "video_processor_type": self.name}

    def __call__(
        self,
        videos: Any,
        *,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        return_metadata: bool | None = None,
        return_tensors: Any = None,
        **changed: Any,
    ) -> Any:
        """Prepare videos as the class whose place it takes does with ``do_sample_frames=False``.

        Parameters
        ----------
        videos : list of arrays or tensors
            (F, H, W, 3) uint8 or (F, 3, H, W) floats in [0, 1], or lists of PIL images.
        video_metadata : list, optional
            One a video, see :meth:`tam_fast.models.videos.Clip.metadata`.
        do_sample_frames : bool, optional
            True is refused: frames are sampled by :func:`tam_fast.models.videos.load_videos`.
        return_metadata : bool, optional
            Whether ``"video_metadata"`` is among what is returned.
        return_tensors : str, optional
            As for processors of transformers.
        **changed
            Settings of this call alone; others are left out.

        Returns
        -------
        transformers.BatchFeature

        Raises
        ------
        ValueError
            If videos are to be sampled, are no frames, too thin, or too few frames for one cell.
        """
        from transformers import BatchFeature
        from transformers.video_utils import make_batched_metadata, make_batched_videos

        if do_sample_frames:
            raise ValueError("do_sample_frames: expected False: without torchvision frames are not sampled, got True")
        given = {key: value for key, value in changed.items() if value is not None and key in self._known}
        settings = {**self.settings, **given}
        if "size" in given or changed.get("min_pixels") or changed.get("max_pixels"):
            settings["size"] = _sized({**self.settings["size"], **dict(settings["size"])}, {}, changed)
        batch = make_batched_videos(videos)
        if any(isinstance(video, str) for video in batch):
            raise ValueError("videos: expected frames, got a path: tam_fast.models.videos.load_videos reads it")
        names = [f"videos[{index}]" for index in range(len(batch))] if len(batch) > 1 else ["videos"]
        pixels = [read_pixels(video, name, 4) for video, name in zip(batch, names, strict=True)]
        tensors = [torch.from_numpy(one).permute(0, 3, 1, 2).contiguous() for one in pixels]
        found = RECIPES[self.name].make(tensors, settings)
        made = BatchFeature(found, tensor_type=return_tensors)
        if settings["return_metadata"] if return_metadata is None else return_metadata:
            made["video_metadata"] = make_batched_metadata(batch, video_metadata)
        return made


def _sized(size: Any, otherwise: Mapping[str, int], settings: Settings) -> dict[str, int]:
    """Bring a size to one form: older folders call its limits ``min_pixels`` and ``max_pixels``, in it or beside it."""
    values = {key: value for key, value in dict(size).items() if value is not None}
    if "shortest_edge" not in otherwise and "shortest_edge" not in values:
        return values
    for key, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        within = values.pop(old, None)
        beside = settings.get(old)
        chosen = next((one for one in (beside, values.get(key), within, otherwise.get(key)) if one is not None), None)
        if chosen is not None:
            values[key] = int(chosen)
    return values


def video_part(processor_name: str, image_processor: Any = None, settings: Settings | None = None) -> VideoPart | None:
    """Make the video part that goes with a processor.

    Parameters
    ----------
    processor_name : str
        The processor's class, such as ``"Qwen3VLProcessor"``.
    image_processor : optional
        Patches are as large as its own where `settings` do not say.
    settings : mapping, optional
        As a folder holds them; ``"video_processor_type"`` is followed.

    Returns
    -------
    VideoPart or None
        None where it can be had only with torchvision.
    """
    settings = settings or {}
    name = str(settings.get("video_processor_type") or _OF_PROCESSOR.get(processor_name, ""))
    if name not in RECIPES:
        return None
    # Video-LLaMA 3 merges the patches of videos, and may leave those of images as they are.
    shared = {key: getattr(image_processor, key, None) for key in _SHARED[: 1 if "Llama3" in name else None]}
    return VideoPart(name, {**{key: value for key, value in shared.items() if isinstance(value, int)}, **settings})


def process_videos(
    processor: Any, clips: Sequence[Clip]
) -> tuple[list[np.ndarray[Any, Any]], dict[str, dict[str, Any]]]:
    """Say what a processor is to be given so that it shows exactly the frames of clips, at their own times.

    Video-LLaMA 3 is given every cell of every frame (``use_token_compression=False``): those that it would leave out
    have no place in a map.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
    clips : sequence of Clip

    Returns
    -------
    videos : list of (F, H, W, 3) uint8 arrays
        For the processor's ``videos``.
    options : dict
        Further arguments of the processor: ``videos_kwargs``.

    Raises
    ------
    ModelNotSupportedError
        If the processor has no video part.
    """
    part = getattr(processor, "video_processor", None)
    name = type(processor).__name__
    if not callable(part):
        how = (
            "load it by tam_fast.load_processor, which makes one"
            if any(name.startswith(known) for known in RECIPES)
            else "of this family it needs torchvision"
        )
        raise ModelNotSupportedError(f"videos: expected a processor with a video processor, got {name} without: {how}")
    options: dict[str, Any] = {
        "video_metadata": [clip.metadata() for clip in clips],
        "do_sample_frames": False,
        "return_metadata": True,  # for processors that write times; those of Cosmos 3 Edge do not ask for them
    }
    if hasattr(part, "use_token_compression"):
        options["use_token_compression"] = False
    if "Omni" in name:
        options["fps"] = _shown_rate(clips)
    return [clip.array() for clip in clips], {"videos_kwargs": options}


def _shown_rate(clips: Sequence[Clip]) -> float:
    """Frames a second that are shown: Qwen's Omni processors are told it in place of times, once for all videos."""
    spans = [(len(clip.times) - 1, clip.times[-1] - clip.times[0]) for clip in clips if len(clip.times) > 1]
    return sum(count for count, _ in spans) / sum(span for _, span in spans) if spans else 2.0
