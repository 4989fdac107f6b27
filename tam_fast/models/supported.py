"""Which model types are supported, and how: :func:`support`."""

from __future__ import annotations

from dataclasses import dataclass

from tam_fast.models.families import FAMILIES, IMPOSSIBLE
from tam_fast.models.registry import registered

__all__ = ["Support", "support"]


@dataclass(frozen=True)
class Support:
    """What there is for a model type.

    Attributes
    ----------
    status : str
        ``"verified"``: its layout was proven by pixels; ``"generic"``: a layout that a user registered, or that is
        assumed with a warning; ``"unbuilt"``: could be had, and is not there; ``"impossible"``.
    group : str
        How its visual tokens are laid out; ``""`` where there is no layout.
    reason : str
        What is missing, or why there can be none; ``""`` for what is verified.
    title : str
        The family's name, for people.
    videos : bool
        Whether the layout knows videos.
    example : str
        A model's hub id; ``""`` if none is known.
    """

    status: str
    group: str
    reason: str = ""
    title: str = ""
    videos: bool = False
    example: str = ""


def support() -> dict[str, Support]:
    """List every model type that is known, by ``config.model_type``.

    Returns
    -------
    dict of str to Support
        Sorted by model type. A type that is not listed goes the generic way if its configuration marks visual
        positions. `reason` says so where the installed transformers does not have the type.
    """
    known = _installed()
    found: dict[str, Support] = {}
    for model_type, family in FAMILIES.items():
        here = not known or model_type in known
        found[model_type] = Support(
            "verified" if not family.unproven else "unbuilt",
            family.group,
            family.unproven or ("" if here else "the installed version of transformers does not have it"),
            family.title,
            family.videos,
            family.example,
        )
    for model_type, family in registered().items():
        found[model_type] = Support("generic", family.group, "registered by the user", family.title, family.videos)
    for model_type, reason in IMPOSSIBLE.items():
        found.setdefault(model_type, Support("impossible", "", reason, model_type))
    return dict(sorted(found.items()))


def _installed() -> frozenset[str]:
    """List the model types of the installed transformers; none if that cannot be told."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        return frozenset()
    return frozenset(CONFIG_MAPPING_NAMES)
