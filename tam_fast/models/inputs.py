"""From images and a prompt to what a model takes, and the layout of the sequence: :func:`prepare_inputs`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tam_fast.maps.layout import Layout
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.family import Family
from tam_fast.models.images import ImageLike, check_sizes, load_images
from tam_fast.models.layouts.source import VisualInput, visual_mask
from tam_fast.models.places import Places, find_places, with_users_texts
from tam_fast.models.prompts import RenderedPrompt, render_prompt
from tam_fast.models.registry import family_of
from tam_fast.models.text import special_token_ids
from tam_fast.models.typed import SpecialTokens, check_special_tokens, check_text, masked, tokenise

__all__ = ["ImageLike", "PromptInputs", "RenderedPrompt", "load_images", "prepare_inputs", "render_prompt"]


@dataclass(frozen=True)
class PromptInputs:
    """One prompt, ready for the model.

    Attributes
    ----------
    family : Family
    inputs : dict of str to object
        What the processor returned and a model may take, on the CPU: tensors, and lists of what is no tensor.
    input_ids : (P,) int64
    rendered : RenderedPrompt
    rendered_ids : tuple of int
        Token ids of ``rendered.text``, one a placeholder: what the prompt is before the processor expands it.
    layout : Layout
        Grids, positions of the prompt's text, and P as the answer's start.
    special_tokens : "text" or "obey"
        What became of control tokens in the prompt.
    """

    family: Family
    inputs: dict[str, Any]
    input_ids: Tensor
    rendered: RenderedPrompt
    rendered_ids: tuple[int, ...]
    layout: Layout
    special_tokens: SpecialTokens = "text"


def prepare_inputs(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompt: str,
    special_tokens: SpecialTokens = "text",
) -> PromptInputs:
    """Turn images and a prompt into model inputs, and find their places in the sequence.

    One user turn, the images before the text. The positions of the prompt's text (``Layout.prompt``) are the tokens
    that spell the user's own words: not the template's, the system prompt's, the processor's, special or visual ones.
    They are found by the offsets that a fast tokenizer reports, see :mod:`tam_fast.models.places`.

    Control tokens and placeholders that the user typed are text, as any other: see
    :func:`tam_fast.models.typed.tokenise`. Where there are such, the processor is given the chat with a character in
    place of the user's text, and the text's tokens are put in afterwards.

    Parameters
    ----------
    model : transformers.PreTrainedModel or PreTrainedConfig
    processor : transformers.ProcessorMixin
    images : sequence of PIL images
    prompt : str
    special_tokens : "text" or "obey"
        ``"obey"`` takes control tokens in the prompt for what they are.

    Returns
    -------
    PromptInputs

    Raises
    ------
    ValueError, TypeError
        If the prompt is empty, no string, has a lone surrogate, or holds the model's placeholder of an image that is
        to be obeyed.
    ModelNotSupportedError
        If model type, processor or tokenizer are not supported; the message says what is missing.
    """
    family = family_of(model)
    config = getattr(model, "config", model)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(f"prompt: expected a text, got {prompt!r}: the answer is explained against its words")
    check_text("prompt", prompt)
    check_special_tokens(special_tokens)
    if not getattr(processor.tokenizer, "is_fast", False):
        raise ModelNotSupportedError(
            "processor: expected a fast tokenizer, which reports tokens' characters, got "
            f"{type(processor.tokenizer).__name__}"
        )
    placeholders = _placeholders(processor)
    if special_tokens == "obey":
        for token in placeholders:
            if token in prompt:
                raise ValueError(f"prompt: expected text without the placeholder {token!r}, got {prompt!r}")
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    rendered = render_prompt(family, processor, [{"role": "user", "content": content}])
    check_sizes(processor, images)
    tokens = tokenise(
        processor.tokenizer,
        rendered.text,
        rendered.spans,
        add_special_tokens=rendered.add_special_tokens,
        special_tokens=special_tokens,
        placeholders=placeholders,
    )
    text = masked(rendered.text, rendered.spans)[0] if tokens.typed else rendered.text
    found, replaced = _process(family, processor, images, text, rendered.add_special_tokens)
    inputs = _taken(model, found)
    ids = inputs["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"processor: expected input_ids (1, P) for one prompt, got shape {tuple(ids.shape)}")
    if _leaves_out(processor, images, text) and not bool(visual_mask(config, ids[0]).any()):
        raise _left_out(processor, images, text)
    if tokens.typed:
        inputs, places = with_users_texts(config, processor, inputs, rendered, tokens, replaced)
    else:
        places = find_places(config, processor, ids[0], rendered, tokens, replaced)
    ids = inputs["input_ids"]
    source = VisualInput(config, processor, ids[0], {**found, **inputs}, [image.size for image in images])
    grids = family.grids(source)
    positions = _users_words(processor, ids[0], places)
    if not positions.numel():
        raise ValueError(f"prompt: expected at least one token of text, got only special ones in {prompt!r}")
    layout = Layout(tuple(grids), positions, int(ids.shape[1]))
    return PromptInputs(family, inputs, ids[0], rendered, tokens.ids, layout, special_tokens)


def _placeholders(processor: Any) -> list[str]:
    """List the strings that a processor expands."""
    found = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
    return [token for token in found if isinstance(token, str) and token]


# What processors return that is no input of a model: targets of training, and bookkeeping.
_NO_INPUTS = frozenset(
    {"labels", "text_replacement_offsets", "offset_mapping", "special_tokens_mask", "video_metadata"}
)


def _process(
    family: Family, processor: Any, images: Sequence[Image.Image], text: str, add_special_tokens: bool
) -> tuple[dict[str, Any], list[Mapping[str, Any]] | None]:
    """Run a processor; return the model's inputs, and what replaced each placeholder where it can tell."""
    options: dict[str, Any] = {
        "return_tensors": "pt",
        "add_special_tokens": add_special_tokens,
        "return_mm_token_type_ids": True,
    }
    settings = getattr(processor, "image_processor", None)
    if family.image_options and getattr(settings, family.image_options[0], None):
        asked = {name: getattr(settings, name, None) for name in family.image_options}
        options["images_kwargs"] = {name: value for name, value in asked.items() if value is not None}
    if _tells_replacements():
        options["return_text_replacement_offsets"] = True
    try:
        found = dict(processor(images=list(images), text=[text], **options))
    except ValueError as error:
        if _leaves_out(processor, images, text):
            raise _left_out(processor, images, text) from error
        raise
    replaced = found.get("text_replacement_offsets")
    return found, replaced[0] if isinstance(replaced, list) and len(replaced) == 1 else None


def _leaves_out(processor: Any, images: Sequence[Image.Image], text: str) -> bool:
    """Whether a chat does not hold the processor's placeholder for each image."""
    token = getattr(processor, "image_token", None)
    return isinstance(token, str) and text.count(token) != len(images)


def _left_out(processor: Any, images: Sequence[Image.Image], text: str) -> ModelNotSupportedError:
    """Make the error of a chat template that leaves images out."""
    token = getattr(processor, "image_token", None)
    return ModelNotSupportedError(
        f"processor: expected a chat template that writes {token!r} for each of {len(images)} images, got "
        f"{text[:200]!r} from {type(processor).__name__}"
    )


def _taken(model: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """Choose of a processor's outputs what a model takes."""
    known: set[str] = set()
    for method in (getattr(type(model), name, None) for name in ("forward", "prepare_inputs_for_generation")):
        if method is not None:
            known.update(inspect.signature(method).parameters)
    return {
        name: value
        for name, value in found.items()
        if name not in _NO_INPUTS
        and value is not None
        and (name in known or not name.endswith("token_type_ids"))
        and (name in known or isinstance(value, Tensor))
    }


def _tells_replacements() -> bool:
    """Whether this version of transformers reports what replaced a placeholder."""
    from transformers import processing_utils

    return "return_text_replacement_offsets" in getattr(processing_utils.TextKwargs, "__annotations__", {})


def _users_words(processor: Any, input_ids: Tensor, places: Places) -> Tensor:
    """Leave out special tokens of the positions (n,) of the users' texts."""
    special = special_token_ids(processor.tokenizer)
    chosen = [place for place in places if int(input_ids[place]) not in special]
    return torch.tensor(chosen, dtype=torch.int64)
