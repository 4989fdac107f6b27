"""Whether the files of a model's folder are whole: :func:`check_processor_files`, :func:`check_model_files`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["check_model_files", "check_processor_files", "read_object"]

# Each is one JSON object where it is there at all.
_PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "config.json",
)
_MODEL_FILES = ("config.json", "generation_config.json")
_WHOLE_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "tekken.json")
_LARGEST_HEADER = 100_000_000  # bytes of a safetensors file's header; the format's own limit


def read_object(file: str | os.PathLike[str], name: str = "path_or_id") -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    file : path
    name : str
        The argument that the message begins with.

    Raises
    ------
    ValueError
        If it cannot be read or is none; names the file.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
        # As text: json would take what is UTF-16 or has a byte order mark, which transformers does not.
        value = json.loads(data.decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{name}: {path.name} of {str(path.parent)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        got = "an empty file" if not data else "what is no JSON in UTF-8"
        raise ValueError(_expected(path, name, got)) from error
    if not isinstance(value, dict):
        raise ValueError(_expected(path, name, f"a JSON {type(value).__name__}"))
    return value


def _expected(path: Path, name: str, got: str) -> str:
    return f"{name}: expected a JSON object in {path.name} of {str(path.parent)!r}, got {got} (is it damaged?)"


def check_processor_files(folder: str | os.PathLike[str], thorough: bool = False, name: str = "path_or_id") -> None:
    """Check that a processor's files are whole, so that an error names the one that is not.

    Parameters
    ----------
    folder : path
    thorough : bool
        Also parse the vocabulary, which takes a while; else only its first and last bytes are looked at.
    name : str
        The argument that the message begins with.

    Raises
    ------
    ValueError
        If one is damaged, or vocabulary or settings of the tokenizer are missing; names the file.
    """
    place = Path(folder)
    for file in _PROCESSOR_FILES:
        if (place / file).exists():
            read_object(place / file, name)
    _check_template(place / "chat_template.jinja", name)
    _check_vocabulary(place, thorough, name)
    settings = place / "tokenizer_config.json"
    if not settings.exists() or not read_object(settings, name):
        got = "an empty object" if settings.exists() else "none"
        raise ValueError(f"{name}: expected the tokenizer's settings, {settings.name}, in {str(place)!r}, got {got}")


def _check_template(template: Path, name: str) -> None:
    if not template.exists():
        return
    what = f"{name}: {template.name} of {str(template.parent)!r}"
    try:
        text = template.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{what} cannot be read as UTF-8 text") from error
    if not text.strip():
        raise ValueError(f"{what} is empty (is it damaged?)")
    try:
        # Templates have tags of their own, which transformers alone knows.
        from transformers.utils.chat_template_utils import _compile_jinja_template as compile_template
    except ImportError:
        return
    try:
        compile_template(text)
    except Exception as error:
        if isinstance(error, ImportError):  # jinja2 is missing, which is no fault of the file
            return
        raise ValueError(f"{what} is no template: {' '.join(str(error).split())[:200]} (is it damaged?)") from error


def _check_vocabulary(place: Path, thorough: bool, name: str) -> None:
    tokenizer = place / "tokenizer.json"
    if tokenizer.exists():
        try:
            with tokenizer.open("rb") as file:
                head = file.read(64).lstrip()[:1]
                file.seek(max(0, tokenizer.stat().st_size - 64))
                tail = file.read().rstrip()[-1:]
        except OSError as error:
            raise ValueError(f"{name}: {tokenizer.name} of {str(place)!r} cannot be read: {error.strerror}") from error
        if thorough or head != b"{" or tail != b"}":
            model = read_object(tokenizer, name).get("model")
            if not isinstance(model, dict) or not model.get("vocab"):
                raise ValueError(
                    f"{name}: expected a tokenizer in {tokenizer.name} of {str(place)!r}, got a JSON object without "
                    "a model and its vocab (is it damaged?)"
                )
            _check_tokenizer(tokenizer, name)
        return
    if (place / "vocab.json").exists():
        read_object(place / "vocab.json", name)
        if (place / "merges.txt").exists():
            return
        raise ValueError(
            f"{name}: expected tokenizer.json, or merges.txt beside vocab.json, in {str(place)!r}, got none"
        )
    others = [*place.glob("*.model"), *place.glob("*.tiktoken")]
    if not others and not any((place / file).exists() for file in _WHOLE_VOCABULARIES):
        raise ValueError(f"{name}: expected the tokenizer's vocabulary, tokenizer.json, in {str(place)!r}, got none")


def _check_tokenizer(file: Path, name: str) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: {file.name} of {str(file.parent)!r} is no tokenizer: {reason}") from error


def check_model_files(folder: str | os.PathLike[str], name: str = "model") -> None:
    """Check that a model's configuration and safetensors files are whole, by their heads: nothing large is read.

    Parameters
    ----------
    folder : path
    name : str
        The argument that the message begins with.

    Raises
    ------
    ValueError
        If one is damaged or cut short, or the index names a file that is not there; names the file.
    """
    place = Path(folder)
    for file in _MODEL_FILES:
        if (place / file).exists():
            read_object(place / file, name)
    index = place / "model.safetensors.index.json"
    if index.exists() and not (place / "model.safetensors").exists():
        places = read_object(index, name).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{name}: expected a weight_map in {index.name} of {str(place)!r} (is it damaged?)")
        missing = sorted(file for file in set(places.values()) if not (place / file).is_file())
        if missing:
            raise ValueError(
                f"{name}: expected {missing[0]}, which {index.name} names, in {str(place)!r}, got none"
                + (f" (and {len(missing) - 1} others)" if len(missing) > 1 else "")
            )
    for weights in sorted(place.glob("model*.safetensors")):
        problem = _problem_of_weights(weights)
        if problem:
            raise ValueError(f"{name}: {weights.name} of {str(place)!r} is damaged: {problem}")


def _problem_of_weights(path: Path) -> str | None:
    """Say what is wrong with a safetensors file's head and length."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                is_pointer = size < 1024 and path.read_bytes().startswith(b"version https://git-lfs")
                return (
                    "it is a Git LFS pointer, not the file itself" if is_pointer else f"{size} bytes, without a header"
                )
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "its header is no table of tensors"
    return None if size == expected else f"expected {expected} bytes by its header, got {size}"
