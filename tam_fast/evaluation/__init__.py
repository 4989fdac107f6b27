"""What explanations are worth: the paper's metrics and the field's, over data sets, with intervals.

``tam-fast evaluate`` runs it all; the parts can be called alone: :func:`words` and :func:`score` judge the maps of an
answer by a mask, :func:`summary` sums up, :func:`insertion_deletion` asks the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Rooms of these names have functions of these names, which are meant; imported later, a room would take the name.
from tam_fast.evaluation.summary import summary
from tam_fast.evaluation.words import words

_ROOMS = {
    "Word": "words",
    "Scores": "plausibility",
    "score": "plausibility",
    "Summary": "summary",
    "meteor": "captions",
    "rouge_l": "captions",
    "Difference": "statistics",
    "bootstrap": "statistics",
    "holm": "statistics",
    "paired": "statistics",
    "auroc": "localisation",
    "energy_in_mask": "localisation",
    "kl": "localisation",
    "nss": "localisation",
    "pointing_game": "localisation",
    "soft_iou": "localisation",
    "BASELINES": "baselines",
    "baseline_maps": "baselines",
    "Curves": "curves",
    "insertion_deletion": "curves",
    "Faithfulness": "eagle",
    "faithfulness": "eagle",
    "Datamodel": "datamodels",
    "datamodel": "datamodels",
    "linear_datamodeling_score": "datamodels",
    "Hallucination": "hallucination",
    "Randomised": "sanity",
    "Similarity": "sanity",
    "random_answers": "sanity",
    "randomisation": "sanity",
    "similarity": "sanity",
    "stability": "sanity",
    "Motivation": "placebo",
    "motivation": "placebo",
    "Alignment": "attention_statistics",
    "alignment": "attention_statistics",
    "paraphrase_consistency": "attention_statistics",
    "visual_attention": "attention_statistics",
    "Item": "data",
    "Reader": "data",
    "open_data": "data",
    "Frozen": "frozen",
    "freeze": "frozen",
    "Results": "results",
    "read_results": "results",
    "evaluate": "run",
    "MEASURES": "measures",
    "measure": "measures",
}

__all__ = [
    "BASELINES",
    "MEASURES",
    "Alignment",
    "Curves",
    "Datamodel",
    "Difference",
    "Faithfulness",
    "Frozen",
    "Hallucination",
    "Item",
    "Motivation",
    "Randomised",
    "Reader",
    "Results",
    "Scores",
    "Similarity",
    "Summary",
    "Word",
    "alignment",
    "auroc",
    "baseline_maps",
    "bootstrap",
    "datamodel",
    "energy_in_mask",
    "evaluate",
    "faithfulness",
    "freeze",
    "holm",
    "insertion_deletion",
    "kl",
    "linear_datamodeling_score",
    "measure",
    "meteor",
    "motivation",
    "nss",
    "open_data",
    "paired",
    "paraphrase_consistency",
    "pointing_game",
    "random_answers",
    "randomisation",
    "read_results",
    "rouge_l",
    "score",
    "similarity",
    "soft_iou",
    "stability",
    "summary",
    "visual_attention",
    "words",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"tam_fast.evaluation.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
