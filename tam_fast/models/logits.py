"""What models do to the logits of their lm_head before they return them: :class:`Transform`.

Gemma caps them (``final_logit_softcapping``), Cohere and Granite scale them. Names of settings do not tell which way a
model uses them, so what was done is read off logits themselves, before and after; a setting that fits says how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Transform", "is_transformed", "transform_of"]


@dataclass(frozen=True)
class Transform:
    """A factor, and a cap: ``cap * tanh(factor * logits / cap)``, in the dtype of the logits, as the models do it.

    Attributes
    ----------
    factor : float
    cap : float or None
    width : int or None
        How many logits the model returns, where its vocabulary is shorter than its lm_head.
    """

    factor: float = 1.0
    cap: float | None = None
    width: int | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Do to logits of the lm_head what the model does; all shapes."""
        logits = logits[..., : self.width]
        made = logits if self.factor == 1.0 else logits * self.factor
        return made if self.cap is None else torch.tanh(made / self.cap) * self.cap


def is_transformed(scored: Tensor, logits: Tensor, config: Any) -> bool:
    """Whether one positive factor, a cap, or both make what a model returned of what its lm_head gave.

    Parameters
    ----------
    scored, logits : Tensor
        Of the same shape: logits of some tokens, those of the lm_head and the model's.
    config : transformers.PreTrainedConfig
        Names the caps.
    """
    return any(bool(error <= 1.0) for _, error in _tried(scored, logits, config))


def transform_of(scored: Tensor, logits: Tensor, config: Any) -> Transform | None:
    """Find what a model does to its logits; None if it is neither scaling nor capping.

    Where a cap cannot be seen, because the logits are small beside it, the one that the configuration calls final is
    taken to be there.

    Parameters
    ----------
    scored, logits, config
        As for :func:`is_transformed`; better many logits than few.
    """
    width = logits.shape[-1]
    short = width < scored.shape[-1]
    tried = [(made, float(error)) for made, error in _tried(scored[..., :width], logits, config)]
    best = min((error for _, error in tried), default=2.0)
    # In order of preference; half of what is allowed is rounding.
    found = next((made for made, error in tried if error <= max(best, 0.5)), None) if best <= 1.0 else None
    return replace(found, width=width) if short and found is not None else found


def _tried(scored: Tensor, logits: Tensor, config: Any) -> Iterator[tuple[Transform, Tensor]]:
    """Try transforms: how far the logits are from what each makes, as a part of what rounding allows."""
    unit = max(torch.finfo(scored.dtype).eps, torch.finfo(logits.dtype).eps)
    scored, logits = scored.float().flatten(), logits.to(scored.device).float().flatten()
    finite = torch.isfinite(scored) & torch.isfinite(logits)
    scored, logits = scored[finite], logits[finite]
    if not scored.numel():
        yield Transform(), scored.new_zeros(())
        return
    allowed = 8.0 * unit * logits.abs() + 1e-5
    named = _factors(config)
    for cap in _caps(config):
        # One factor for all, least squares on what was capped; what is close to the cap tells little of it.
        share = torch.zeros_like(logits) if cap is None else (logits / cap).clamp(-0.999999, 0.999999)
        raw = logits if cap is None else cap * torch.atanh(share)
        weighted = (1.0 - share * share) ** 2 * scored
        fitted = float((raw * weighted).sum() / (scored * weighted).sum().clamp_min(1e-30))
        near = [factor for factor in named if abs(factor - fitted) <= 0.01 * fitted]
        for factor in dict.fromkeys((1.0, *near, fitted)):
            if factor <= 0.0:
                continue  # the likeliest tokens would be the least likely ones of the lm_head
            made = Transform(factor, cap)
            yield made, ((made(scored) - logits).abs() / allowed).amax()


def _caps(config: Any) -> list[float | None]:
    """Find the caps that a configuration names: final ones, none, others."""
    final: list[float | None] = []
    others: list[float | None] = []
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            plain = name.replace("_", "")
            if "softcap" in plain and "logit" in plain and isinstance(value, (int, float)) and value > 0:
                (final if plain.startswith("final") else others).append(float(value))
    return [*dict.fromkeys(final), None, *dict.fromkeys(others)]


def _factors(config: Any) -> list[float]:
    """Find the factors that a configuration names (``logit_scale``, ``output_multiplier``), and one over them."""
    found: list[float] = []
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            is_one = ("logit" in name or "output" in name) and ("scal" in name or "multiplier" in name)
            if is_one and isinstance(value, (int, float)) and value > 0:
                found += [float(value), 1.0 / value]
    return found
