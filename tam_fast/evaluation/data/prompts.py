"""What the paper's protocol asks, by name: :data:`PROMPTS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["PROMPTS", "prompt_of"]

PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "one-sentence": "Write a one-sentence caption for this image:",
        "two-sentences": "Write a description for this image using around two sentences:",
        "three-sentences": "Write a description for this image using around three sentences:",
    }
)
"""Of COCO captions, GranDf and OpenPSG."""


def prompt_of(text: str | None) -> str | None:
    """Return the prompt of a name of :data:`PROMPTS`; any other text is the prompt itself.

    Raises
    ------
    ValueError
        If it is empty.
    """
    if text is None:
        return None
    if not text.strip():
        raise ValueError("prompt: expected a text, got an empty one")
    return PROMPTS.get(text.strip(), text)
