"""What is particular about a family of models: :class:`Family`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tam_fast.models.layouts.source import GridBuilder

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """What is particular about a family of models.

    Attributes
    ----------
    title : str
        Its name, for people.
    group : str
        How its visual tokens are laid out, for people.
    grids : callable
        Builds the grids of one input, see :mod:`tam_fast.models.layouts`.
    example : str
        A model's hub id.
    videos : bool
        Whether the layout knows videos.
    mixed : bool
        Whether a prompt may have images and videos.
    chat_template : str or None
        The documented prompt as a Jinja template, for processors that come without one.
    answer_prefix : str
        What stands between the prompt and the first word of an answer: ``" "`` where the prompt ends in a colon.
    answer_values : mapping of str to int
        Values that per-position inputs have at the answer's positions, where they are not 1 in the attention mask and
        0 in ``token_type_ids`` and the like.
    before_frame, behind_frame : str
        Patterns of what the processor writes before and behind each frame of a video, such as its time.
    image_options : tuple of str
        Settings of the image processor that the processor overrides by its own: where the first, a switch, is set,
        they are handed on with every call.
    crop_words : tuple of str
        What the processor then writes before an image, before its crops and between them.
    unproven : str
        Why the layout could not be proven by pixels; '' where it was.
    """

    title: str
    group: str
    grids: GridBuilder
    example: str = ""
    videos: bool = False
    chat_template: str | None = None
    answer_prefix: str = ""
    answer_values: Mapping[str, int] = field(default_factory=dict)
    before_frame: str = ""
    behind_frame: str = ""
    image_options: tuple[str, ...] = ()
    crop_words: tuple[str, ...] = ()
    unproven: str = ""
    mixed: bool = True
