"""Models that the user names: from ``--model``, ``--device`` and ``--dtype`` to an Explainer."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tam_fast.cli.console import ExitCode, Failure, one_line, reason, shortened

if TYPE_CHECKING:
    from tam_fast.explain import Explainer

__all__ = ["Dtype", "check_folder", "find_device", "load_explainer", "quiet_libraries"]


class Dtype(str, Enum):
    """Number formats of the model's weights; ``auto`` leaves them as they are stored."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def load_explainer(model: str | None, device: str, dtype: str, debug: bool) -> Explainer:
    """Load a model and its processor and put an Explainer around them.

    Parameters
    ----------
    model : str, optional
        A model folder or a model hub id. None is the embedded model.
    device, dtype : str
        Where the model goes, see :func:`find_device`, and its number format, see :class:`Dtype`.
    debug : bool
        Let the model libraries print what they like.

    Raises
    ------
    Failure
        If torch cannot use the device, or the model is not found, not supported or broken.
    """
    with _uncollected():
        import torch
        import transformers

        from tam_fast.explain import Explainer

    if not debug:
        quiet_libraries()
    place = find_device(device)
    number_format = dtype if dtype == "auto" else getattr(torch, dtype)
    name = "the embedded model" if model is None else repr(shortened(model))
    loaded: Any
    try:
        if model is None:
            from tam_fast.demo import load_demo

            with _uncollected():
                loaded, processor = load_demo()
            loaded = loaded.to(place) if dtype == "auto" else loaded.to(place, number_format)
        else:
            from tam_fast.models.folders import check_model_files
            from tam_fast.models.processors import load_processor

            check_folder(model)
            if Path(model).is_dir():
                check_model_files(model)
            with _uncollected():
                auto: Any = transformers.AutoModelForImageTextToText
            # Code that comes with a model is never run (and the question whether to is never asked).
            loaded = auto.from_pretrained(model, dtype=number_format, trust_remote_code=False)
            loaded = loaded.to(place).eval()
            processor = load_processor(model, trust_remote_code=False)
        return Explainer(loaded, processor)
    except Failure:
        raise
    # Whatever is wrong with a model's files surfaces as nearly any type of exception.
    except Exception as error:
        text = reason(error) if isinstance(error, OSError) else error
        raise Failure(ExitCode.MODEL, f"--model: cannot use {name}: {one_line(text)}") from error


def quiet_libraries() -> None:
    """Keep the model libraries from printing more than errors."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector off imports: what they make stays, and the search takes an eighth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_folder(model: str) -> None:
    """Tell a folder that is missing from a hub id, so that a mistyped path is not looked for on the network."""
    path = Path(model)
    shown = shortened(model)
    # Hub ids of such models are OWNER/NAME.
    looks_like_path = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1 or "\\" in model
    if path.is_dir() and not (path / "config.json").is_file():
        raise Failure(ExitCode.MODEL, f"--model: expected a model folder, got {shown!r}, which has no config.json")
    if (path.exists() and not path.is_dir()) or (looks_like_path and not path.exists()):
        found = "which is a file" if path.is_file() else "which is no folder"
        found = found if path.exists() else "which does not exist"
        expected = "a model folder or a model hub id (OWNER/NAME)"
        raise Failure(ExitCode.MODEL, f"--model: expected {expected}, got {shown!r}, {found}")


def find_device(name: str) -> Any:
    """Return the torch device of a name; ``auto`` is the GPU where torch has one.

    Raises
    ------
    Failure
        If torch cannot use it here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it keeps no values")
        # Fails where torch lacks the device; costs nothing elsewhere.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Failure(
            ExitCode.USAGE, f"--device: expected one that torch can use here, got {name!r} ({one_line(error, 100)})"
        ) from error
    return device
