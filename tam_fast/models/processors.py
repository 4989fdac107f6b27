"""Processors that load on a machine without torchvision: :func:`load_processor`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tam_fast.models.folders import check_processor_files, read_object
from tam_fast.models.frames import VideoPart, video_part

__all__ = ["image_only_processor_class", "load_processor"]


# For folders that hold a model's config.json but do not name their processor class.
_CLASS_OF_MODEL_TYPE: Mapping[str, str] = MappingProxyType(
    {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "llava": "LlavaProcessor"}
)

# What transformers' file look-up takes of from_pretrained's keyword arguments.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


class _NoVideos:
    """Stands for a video processor while a processor is made."""


_initialising: ContextVar[bool] = ContextVar("initialising", default=False)


@cache
def image_only_processor_class(name: str) -> Any:
    """Return the transformers processor class `name` without its video processor.

    Its video processor needs torchvision, although images need none. The class takes what its base takes, but for that:
    ``cls(image_processor, tokenizer, chat_template=None)``; everything about images is inherited. In place of the video
    processor there is a :class:`tam_fast.models.frames.VideoPart`, set as the argument ``video_processor`` (a mapping)
    or the folder says; families that have none refuse videos. It bears the name of its base, so that a folder it saves
    can be loaded by the base class as well.

    Parameters
    ----------
    name : str
        Such as ``"Qwen2VLProcessor"`` or ``"Qwen3VLProcessor"``.

    Returns
    -------
    type
        A subclass of the transformers class of that name. Where its instances have no ``video_processor``, calling them
        with ``videos=`` raises ValueError.

    Raises
    ------
    ValueError
        If `name` is no processor class that takes a video processor.
    """
    base = _class_with_videos(name)
    if base is None:
        raise ValueError(f"name: expected a processor class of transformers that takes a video processor, got {name!r}")
    every = list(base.get_attributes())
    # In the order of the arguments below, in which transformers hands them over.
    kept = [one for one in ("image_processor", "tokenizer", "feature_extractor") if one in every]
    accepted = inspect.signature(base.__init__).parameters
    # Such as how many tokens an image is.
    own_settings = [key for key in accepted if key not in (*every, "self", "chat_template", "args", "kwargs")]

    def __init__(
        self: Any,
        image_processor: Any = None,
        tokenizer: Any = None,
        feature_extractor: Any = None,
        chat_template: Any = None,
        video_processor: Any = None,
        **kwargs: Any,
    ) -> None:
        own = (image_processor, tokenizer, feature_extractor)
        given = {**kwargs, **dict(zip(kept, own, strict=False)), "chat_template": chat_template}
        given = {key: value for key, value in given.items() if key in accepted and key != "video_processor"}
        token = _initialising.set(True)
        try:
            base.__init__(self, video_processor=_NoVideos(), **given)
        finally:
            _initialising.reset(token)
        del self.video_processor
        part = video_processor
        if not isinstance(part, VideoPart):
            part = video_part(name, image_processor, part)
        if part is not None:
            self.video_processor = part

    def __call__(self: Any, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if videos is not None and not hasattr(self, "video_processor"):
            raise ValueError(f"videos: {name} was loaded without its video processor, which needs torchvision")
        return super(cls, self).__call__(images=images, text=text, videos=videos, **kwargs)

    def validate_init_kwargs(processor_config: Any, valid_kwargs: Any) -> Any:
        # Else only the arguments that are named above are taken of a folder, and not those of the base alone.
        return base.validate_init_kwargs(processor_config, [*valid_kwargs, *own_settings])

    def to_dict(self: Any) -> dict[str, Any]:
        settings = {key: value for key, value in self.__dict__.items() if key in own_settings and _is_plain(value)}
        found = {**settings, **super(cls, self).to_dict()}
        found.pop("video_processor", None)
        part = getattr(self, "video_processor", None)
        return found if part is None else {**found, "video_processor": part.to_dict()}

    def from_pretrained(_cls: Any, path_or_id: Any, *args: Any, **options: Any) -> Any:
        made = super(cls, cls).from_pretrained(path_or_id, *args, **options)
        part = video_part(name, made.image_processor, _video_settings(os.fspath(path_or_id), options))
        if part is not None:
            made.video_processor = part
        return made

    def __reduce__(self: Any) -> tuple[Any, ...]:
        # The class is made at run time: pickle and copy find it by calling this function again.
        return _rebuild, (name, dict(self.__dict__))

    def get_attributes(_cls: Any) -> list[str]:
        return every if _initialising.get() else kept

    def check_argument_for_proper_class(self: Any, attribute: str, argument: Any) -> Any:
        if isinstance(argument, _NoVideos):
            return _NoVideos
        return super(cls, self).check_argument_for_proper_class(attribute, argument)

    cls: Any = type(
        name,
        (base,),
        {
            "__init__": __init__,
            "__call__": __call__,
            "to_dict": to_dict,
            "validate_init_kwargs": staticmethod(validate_init_kwargs),
            "from_pretrained": classmethod(from_pretrained),
            "__reduce__": __reduce__,
            "__module__": __name__,
            "get_attributes": classmethod(get_attributes),
            "check_argument_for_proper_class": check_argument_for_proper_class,
        },
    )
    return cls


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _video_settings(path_or_id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Read a folder's settings of its video processor where transformers does; {} where there are none."""
    nested = _read_json(path_or_id, "processor_config.json", kwargs).get("video_processor")
    if isinstance(nested, dict):
        return nested
    # Folders that are older than video processors share the settings of images.
    own = _read_json(path_or_id, "video_preprocessor_config.json", kwargs)
    return own or _read_json(path_or_id, "preprocessor_config.json", kwargs)


def _class_with_videos(name: str | None) -> Any:
    """Find a processor class of transformers that takes images and a video processor; None if it is none."""
    import transformers

    try:
        found = getattr(transformers, str(name), None)
        attributes = found.get_attributes() if found is not None else ()
    except Exception:  # stand-ins for classes whose requirements are missing raise on every use
        return None
    return found if {"image_processor", "tokenizer", "video_processor"} <= set(attributes) else None


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

    ``AutoProcessor`` is used where it works. Where a processor cannot be had because its video part is missing
    (transformers has it only with torchvision), the same files are loaded without it
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
        if _class_with_videos(name) is None:
            raise
        return image_only_processor_class(str(name)).from_pretrained(location, **kwargs)


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
