"""Processors that load on a machine without torchvision: :func:`load_processor`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tam_fast.models.folders import check_processor_files, read_object

__all__ = ["image_only_processor_class", "load_processor"]


@dataclass(frozen=True)
class _Placeholders:
    """The strings that a processor class puts where an image or a video goes, unless its tokenizer names others."""

    image_token: str
    video_token: str


# Processor classes that take a video processor, which transformers cannot build without torchvision, although images
# need none. Only data: image_only_processor_class() makes the two-argument subclass.
_WITH_VIDEO: Mapping[str, _Placeholders] = MappingProxyType(
    {
        "Qwen2VLProcessor": _Placeholders("<|image_pad|>", "<|video_pad|>"),
        "Qwen2_5_VLProcessor": _Placeholders("<|image_pad|>", "<|video_pad|>"),
    }
)

# For folders that hold a model's config.json but do not name their processor class.
_CLASS_OF_MODEL_TYPE: Mapping[str, str] = MappingProxyType(
    {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "llava": "LlavaProcessor"}
)

# What transformers' file look-up takes of from_pretrained's keyword arguments.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


@cache
def image_only_processor_class(name: str) -> Any:
    """Return the transformers processor class `name` without its video processor.

    The class is built of an image processor and a tokenizer, ``cls(image_processor, tokenizer, chat_template=None)``,
    so that it needs no torchvision; everything about images is inherited. It bears the name of its base, so that a
    folder it saves can be loaded by the base class as well.

    Parameters
    ----------
    name : str
        ``"Qwen2VLProcessor"`` or ``"Qwen2_5_VLProcessor"``.

    Returns
    -------
    type
        A subclass of the transformers class of that name; calling its instances with ``videos=`` raises ValueError.

    Raises
    ------
    ValueError
        If `name` is no processor class that takes a video processor.
    """
    import transformers

    mixin: Any = transformers.ProcessorMixin
    if name not in _WITH_VIDEO:
        raise ValueError(f"name: expected one of {sorted(_WITH_VIDEO)}, got {name!r}")
    base: Any = getattr(transformers, name)
    placeholders = _WITH_VIDEO[name]

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_kwargs: Any
    ) -> None:
        for kind in ("image", "video"):
            token = getattr(tokenizer, f"{kind}_token", None) or getattr(placeholders, f"{kind}_token")
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        mixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self: Any, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if videos is not None:
            raise ValueError(f"videos: {name} was loaded without its video processor, which needs torchvision")
        return super(cls, self).__call__(images=images, text=text, **kwargs)

    def __reduce__(self: Any) -> tuple[Any, ...]:
        # The class is made at run time: pickle and copy find it by calling this function again.
        return _rebuild, (name, dict(self.__dict__))

    cls: Any = type(
        name,
        (base,),
        {"__init__": __init__, "__call__": __call__, "__reduce__": __reduce__, "__module__": __name__},
    )
    return cls


def _rebuild(name: str, state: dict[str, Any]) -> Any:
    cls = image_only_processor_class(name)
    processor = cls.__new__(cls)
    processor.__dict__.update(state)
    return processor


def _read_json(path_or_id: str, filename: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Read one JSON file of a folder or hub repository; {} where it is missing."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        path_or_id,
        filename,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs},
    )
    if path is None:
        return {}
    return read_object(path)


def _processor_class_name(path_or_id: str, kwargs: Mapping[str, Any]) -> str | None:
    """Find the processor class that a folder's files name, or that goes with its model type."""
    for filename in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        name = _read_json(path_or_id, filename, kwargs).get("processor_class")
        if isinstance(name, str):
            return name
    return _CLASS_OF_MODEL_TYPE.get(str(_read_json(path_or_id, "config.json", kwargs).get("model_type")))


def load_processor(path_or_id: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load the processor of a vision-language model, with or without torchvision.

    ``AutoProcessor`` is used where it works. Where a Qwen2-VL or Qwen2.5-VL processor cannot be had because its video
    part is missing (transformers has it only with torchvision), the same files are loaded without it
    (:func:`image_only_processor_class`); images are then prepared by the PIL image processor.

    Parameters
    ----------
    path_or_id : str or path
        A folder with the processor's files (nothing is fetched then), or a model hub id.
    **kwargs
        Passed on to ``from_pretrained``.

    Returns
    -------
    transformers.ProcessorMixin
        With an ``image_processor`` and a ``tokenizer``.

    Raises
    ------
    FileNotFoundError
        If `path_or_id` is a path to nothing.
    ValueError
        If a folder holds no processor of images and text; says what is there instead, or which file is missing.
    ImportError, OSError
        What transformers raises where there is no way around it: a package is missing, the hub is out of reach.
    """
    import transformers

    location = os.fspath(path_or_id)
    is_folder = Path(location).is_dir()
    if not is_folder and (Path(location).is_absolute() or location.startswith((".", "~"))):
        raise FileNotFoundError(f"path_or_id: expected a folder with a processor or a model hub id, got {location!r}")
    folder = Path(location, kwargs.get("subfolder") or "") if is_folder else None
    if folder is not None:
        check_processor_files(folder)
    try:
        processor = _from_pretrained(location, is_folder, kwargs)
    except Exception as error:  # damaged files make transformers raise nearly anything
        if folder is None or isinstance(error, ImportError):
            raise
        check_processor_files(folder, thorough=True)
        raise ValueError(_unusable(folder, error)) from error
    if not isinstance(processor, transformers.ProcessorMixin) or getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"path_or_id: expected a processor of images and text in {location!r}, got {type(processor).__name__} "
            "(is processor_config.json or preprocessor_config.json missing?)"
        )
    if getattr(processor, "tokenizer", None) is not None:
        _check_words(processor.tokenizer, location)
    if isinstance(processor, transformers.LlavaProcessor):
        _complete_llava(processor, location, kwargs)
    return processor


def _from_pretrained(location: str, is_folder: bool, kwargs: Mapping[str, Any]) -> Any:
    """Load a processor as transformers does, or without its video part where that is what is in the way."""
    import transformers

    auto: Any = transformers.AutoProcessor
    try:
        return auto.from_pretrained(location, **kwargs)
    except Exception as error:
        # Without torchvision versions raise what they will (ImportError, TypeError), with a CUDA one beside a CPU torch
        # RuntimeError, and OSError for a folder saved by a processor that had no video part. A hub that is out of reach
        # need not be asked again.
        if isinstance(error, OSError) and not is_folder:
            raise
        name = _processor_class_name(location, kwargs)
        if name not in _WITH_VIDEO:
            raise
        return image_only_processor_class(name).from_pretrained(location, **kwargs)


_READ = ("config.json", "token")  # in the names of the files that transformers reads


def _unusable(folder: Path, error: Exception) -> str:
    """Say of a folder whose files are whole what transformers has against it, and which files those are."""
    own = folder / "processor_config.json"
    if not (folder / "preprocessor_config.json").exists() and not (
        own.exists() and "image_processor" in read_object(own)
    ):
        what = f"{own.name} has no image_processor" if own.exists() else f"there is no {own.name}"
        return (
            f"path_or_id: expected a processor's files in {str(folder)!r}, got no preprocessor_config.json, and {what}"
        )
    files = sorted(path.name for path in folder.glob("*.json") if any(word in path.name for word in _READ))
    reason = " ".join(str(error).split())
    return (
        f"path_or_id: expected a processor's files in {str(folder)!r}, got {', '.join(files)}, which transformers "
        f"cannot use: {type(error).__name__}: {reason[:300]}"
    )


_FEW = 100  # tokens: such a vocabulary is looked at


def _check_words(tokenizer: Any, location: str) -> None:
    """Refuse a tokenizer that was made up of its settings alone, because its vocabulary is missing."""
    known = set(tokenizer.get_vocab()) if len(tokenizer) <= _FEW else set()
    if known and not known - set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"path_or_id: expected a tokenizer with a vocabulary in {location!r}, got {len(known)} special tokens "
            "(is tokenizer.json missing or damaged?)"
        )


# How many of the vision tower's outputs stand before those of the patches: a class token, or none.
_TOKENS_BEFORE_PATCHES: Mapping[str, int] = MappingProxyType({"clip_vision_model": 1, "siglip_vision_model": 0})


def _complete_llava(processor: Any, location: str, kwargs: Mapping[str, Any]) -> None:
    """Give an old LLaVA processor what its model's configuration says: without, it cannot count image tokens."""
    missing = [name for name in ("patch_size", "vision_feature_select_strategy") if getattr(processor, name) is None]
    told = {*kwargs, *_read_json(location, "processor_config.json", kwargs)}
    # Processors once had no number of other tokens, which came out as 0.
    uncounted = "num_additional_image_tokens" not in told and not processor.num_additional_image_tokens
    if not missing and not uncounted:
        return
    config = _read_json(location, "config.json", kwargs)
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    size, strategy = vision.get("patch_size"), config.get("vision_feature_select_strategy")
    said = {
        "patch_size": size if isinstance(size, int) and size > 0 else None,
        "vision_feature_select_strategy": strategy if strategy in ("default", "full") else None,
        "num_additional_image_tokens": _TOKENS_BEFORE_PATCHES.get(str(vision.get("model_type"))),
    }
    # What was given as an argument is not asked for again.
    lacking = [
        name for name in [*missing, *(["num_additional_image_tokens"] if uncounted else [])] if said[name] is None
    ]
    if lacking and missing:
        raise ValueError(
            f"path_or_id: expected {', '.join(lacking)} of the LLaVA processor in {location!r}, got none from its "
            "files and none from a config.json beside them (vision_config.patch_size, vision_config.model_type, "
            "vision_feature_select_strategy): give them, such as load_processor(..., patch_size=14, "
            "vision_feature_select_strategy='default', num_additional_image_tokens=1)"
        )
    for name, value in said.items():
        if value is not None and (name in missing or (uncounted and name == "num_additional_image_tokens")):
            setattr(processor, name, value)
