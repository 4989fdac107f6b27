"""One call of ``explain``: what is asked, checked and prepared, then run, then made an explanation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tam_fast.explain.contrast import contrast_of
from tam_fast.explain.generation import force, generate, read
from tam_fast.explain.job import Job, Work, Writer, make_maps
from tam_fast.explain.methods import Other, with_maps_of
from tam_fast.explain.targets import Selection, Targets, select
from tam_fast.explanation import Explanation
from tam_fast.maps.tokens import Compat
from tam_fast.models.capture import CapturedCandidates

__all__ = ["Made", "Request", "explanations"]


@dataclass(eq=False)
class Request:
    """What one explanation is asked for.

    Attributes
    ----------
    job : Job
    arguments : dict
        Of ``generate``.
    answer : list of int, or None
        Given tokens, to explain in place of the model's own.
    targets : str or sequence
        See :func:`tam_fast.explain.targets.check_targets`.
    compat, keep_states
        As for :meth:`Explainer.explain`.
    blind : Job, optional
        Of the prompt without images, where probabilities without them are asked for.
    started : float
    other : Other, optional
        A method that explains in place of TAM.
    """

    job: Job
    arguments: dict[str, Any]
    answer: list[int] | None = None
    targets: Targets = "answer"
    compat: Compat = None
    keep_states: bool = False
    blind: Job | None = None
    started: float = field(default_factory=time.perf_counter)
    other: Other | None = None

    def run(self) -> Made:
        """Generate, or run the model over what was given."""
        began = time.perf_counter()
        if self.targets == "prompt":
            made = Made(self, *read(self.job))
        elif self.answer is None:
            made = Made(self, *generate(self.job, self.arguments))
        else:
            self.job.source = "given"
            made = Made(self, *force(self.job, self.answer))
        stage = "generate" if self.answer is None and self.targets != "prompt" else "forward"
        self.job.elapsed[stage] = time.perf_counter() - began
        return made


@dataclass(eq=False)
class Made:
    """What a model made of a request.

    Attributes
    ----------
    request : Request
    ids : list of T int
        The generated or given tokens; the prompt's words where these are explained.
    hidden : (P + T - 1, C) Tensor
        Final hidden states; (P, C) where the prompt is explained.
    candidates : CapturedCandidates
        Of each of `ids`.
    """

    request: Request
    ids: list[int]
    hidden: Tensor
    candidates: CapturedCandidates

    def writer(self) -> Writer:
        """Decode the tokens."""
        writer = Writer(self.request.job.processor.tokenizer, self.candidates)
        for token_id in self.ids:
            writer.append(token_id)
        return writer


def explanations(made: Sequence[Made]) -> list[Explanation]:
    """Make the explanations of some answers of one model: maps by one call of the kernels for each way to define them.

    Parameters
    ----------
    made : sequence of Made

    Returns
    -------
    list of Explanation
        In order.
    """
    began = time.perf_counter()
    writers = [None if item.request.targets == "prompt" else item.writer() for item in made]
    selections: list[Selection | None] = []
    works: list[Work] = []
    for item, writer in zip(made, writers, strict=True):
        request, is_prompt = item.request, writer is None
        selection = None if writer is None else select(writer.whole()[0], request.job.prompt_end(), request.targets)
        runs = [(0, len(item.ids))] if selection is None else selection.runs()
        selections.append(selection)
        works.append(Work(request.job, item.ids, item.hidden, runs, is_prompt))
    maps: dict[int, Any] = {}
    for settings in dict.fromkeys((item.request.compat, item.request.job.kernel_size) for item in made):
        alike = [k for k, item in enumerate(made) if (item.request.compat, item.request.job.kernel_size) == settings]
        with torch.no_grad():
            maps |= dict(zip(alike, make_maps([works[k] for k in alike], settings[0]), strict=True))
    spent = (time.perf_counter() - began) / len(made)
    found: list[Explanation] = []
    for k, (item, writer, selection, work) in enumerate(zip(made, writers, selections, works, strict=True)):
        request, job = item.request, item.request.job
        job.elapsed["maps"] = spent
        if request.other is not None:
            began = time.perf_counter()
            maps[k] = with_maps_of(maps[k], work, request.other)
            job.elapsed["method"] = time.perf_counter() - began
        states = job.keep(work) if request.keep_states else None
        if selection is None or writer is None:
            found.append(job.prompt_explanation(maps[k], item.ids, item.candidates, states))
        else:
            contrast = None
            if request.blind is not None:
                began = time.perf_counter()
                contrast = contrast_of(job, request.blind, item.ids, item.hidden, selection.steps)
                job.elapsed["contrast"] = time.perf_counter() - began
            found.append(job.explanation(maps[k], writer, states, selection, contrast))
            if request.other is not None:
                found[-1].method = str(request.other)
        job.elapsed["total"] = time.perf_counter() - request.started
    return found
