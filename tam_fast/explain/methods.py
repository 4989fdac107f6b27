"""Maps of other methods for the tokens of an explanation: ``explain(method=...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tam_fast.explain.job import Job, Work
from tam_fast.explain.progress import progress
from tam_fast.maps.answer import TokenActivationMaps
from tam_fast.methods.attribution import check_method, checked_options, raw_maps
from tam_fast.methods.refining import Recipe, check_scale, parse, refine, scaled
from tam_fast.methods.registry import method_of
from tam_fast.methods.task import Task

__all__ = ["Other", "other_method", "with_maps_of"]

_OF_CONTEXT = ("eci", "eci_mean", "eci_attention")  # need the maps of context tokens, the prompt's words included


@dataclass(frozen=True)
class Other:
    """A method that explains in place of TAM.

    Attributes
    ----------
    recipe : Recipe
    options : mapping
        Of the method, all of them.
    scale : "map" or "answer"
    shown : bool
        Whether a bar shows how many of its passes have been made, if it tells.
    """

    recipe: Recipe
    options: Mapping[str, Any]
    scale: str
    shown: bool = False

    def __str__(self) -> str:
        return f"{self.recipe}@{self.scale}" if self.scale != "map" else str(self.recipe)

    def completed(self, job: Job) -> dict[str, Any]:
        """Return the options with what a prompt knows of them, where they have the names.

        ``images``: None becomes the prompt's pictures, if it has some, and True too; False becomes None.
        ``normalization``: what the processor does to pixels, where a grey or black ``baseline`` stands for absent ones.

        Raises
        ------
        ValueError
            If ``images`` is True, and there are none.
        """
        options = dict(self.options)
        if "images" in options:
            given = options["images"]
            if given is True and not job.chat.images:
                raise ValueError("images: expected a prompt with images whose superpixels True takes, got none")
            if given is None or given is True:
                options["images"] = list(job.chat.images) or None
            elif given is False:
                options["images"] = None
        if options.get("normalization", ...) is None and str(options.get("baseline")) in ("grey", "black"):
            options["normalization"] = _normalization(job)
        return options


def other_method(
    model: Any,
    method: str,
    refine: str | None,
    scale: str,
    options: Mapping[str, Any] | None,
    progress: bool = False,
) -> Other | None:
    """Read which method explains in place of TAM, and check that the model can be explained by it; None for TAM itself.

    With `progress`, or ``{"progress": True}`` among the options, a method that tells how many passes it has made and
    will make shows it as a bar; a callable there is told in place of it.

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        If it cannot, or a name, option or scale is unknown; before anything is run.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"method_options: expected a mapping, got {type(options).__name__}")
    check_scale(scale)
    if method == "tam" and refine is None:
        for name, value in (("method_options", options or None), ("scale", None if scale == "map" else scale)):
            if value is not None:
                raise ValueError(f"{name}: expected none with method='tam', got {value!r}")
        return None
    recipe = parse(method, refine)
    chosen = method_of(recipe.method)
    given = checked_options(chosen, options or {})
    shown = "progress" in given and not callable(given["progress"]) and (progress or given["progress"] is True)
    if shown:
        given["progress"] = False
    check_method(chosen, model, given)
    if recipe.interference == "eci_attention":
        check_method(method_of("attention"), model)
    return Other(recipe, given, scale, shown)


def with_maps_of(maps: TokenActivationMaps, work: Work, other: Other) -> TokenActivationMaps:
    """Put the maps of another method in place of an answer's; its relevance stays.

    Parameters
    ----------
    maps : TokenActivationMaps
        Of the tokens that are explained.
    work : Work
        Their states and runs.
    other : Other

    Returns
    -------
    TokenActivationMaps
        ``flat`` where a map is 0 everywhere; ``scale`` is 0, for what is taken off is not TAM's.
    """
    job, layout, recipe = work.job, work.job.prompt.layout, other.recipe
    stop = work.runs[-1][1]
    ids = torch.cat([job.prompt.input_ids, torch.tensor(work.ids[:stop])])
    of_context = recipe.interference in _OF_CONTEXT
    task = Task(job.model, job.model_inputs(work.ids[: stop - 1]), layout, ids, with_prompt=of_context)
    options = other.completed(job)
    with _bar(recipe.method, other.shown) as told:
        raw = raw_maps(task, method_of(recipe.method), {**options, **told}).clamp_min(0.0)
    words = layout.prompt.numel() if of_context else 0
    context: Tensor | None = None
    relevance: Tensor | None = None
    counted: Tensor | None = None
    if of_context:
        context = raw[:-1]
        relevance, counted = _relevance(work, task, stop)
        if recipe.interference == "eci_attention":
            relevance = _attention(task, layout.answer_start, words, stop) * counted
    made = refine(
        raw[words:],
        context,
        relevance,
        interference=recipe.interference,
        filter=recipe.filter,
        grids=layout.grids,
        kernel_size=job.kernel_size,
        counted=counted,
    )
    steps = [step for start, end in work.runs for step in range(start, end)]
    shown = scaled(made[steps], other.scale)
    return replace(maps, maps=shown, flat=~(shown > 0).any(dim=1), scale=torch.zeros_like(maps.scale))


def _normalization(job: Job) -> tuple[Any, Any] | None:
    """Find (mean, standard deviation) of what the processor does to pixels of 0..1; None if it does not say one thing.

    Processors multiply values of 0..255 by their factor first, and may leave out either step.
    """
    found = []
    for given, name in ((job.chat.images, "image_processor"), (job.chat.videos, "video_processor")):
        part = getattr(job.processor, name, None) if given else None
        mean, spread = (getattr(part, key, None) for key in ("image_mean", "image_std"))
        if not getattr(part, "do_normalize", True):
            mean, spread = 0.0, 1.0
        if not given or mean is None or spread is None:
            continue
        full = 255.0 * float(getattr(part, "rescale_factor", 1 / 255)) if getattr(part, "do_rescale", True) else 255.0
        made = [torch.as_tensor(value, dtype=torch.float64).flatten() / full for value in (mean, spread)]
        found.append((tuple(made[0].tolist()), tuple(made[1].tolist())))
    return found[0] if len(set(found)) == 1 else None


@contextmanager
def _bar(method: str, shown: bool) -> Iterator[dict[str, Callable[[int, int], object]]]:
    """Show a method's passes; what is yielded are its options. A total that grows is no longer shown."""
    if not shown:
        yield {}
        return
    with ExitStack() as bar:
        before, expected, advance = 0, -1, None

        def tell(done: int, total: int) -> None:
            nonlocal before, expected, advance
            if advance is None or total > expected >= 0:
                bar.close()
                known = total if advance is None else None
                advance = bar.enter_context(progress(known, f"passes of {method}")).advance
                expected = -1 if known is None else total
                before = 0
            advance(done - before)
            before = done

        yield {"progress": tell}


def _relevance(work: Work, task: Task, stop: int) -> tuple[Tensor, Tensor]:
    """Score how each context token (K,) bears on each target (T,), and say which count: (T, K) float32 and bool."""
    layout = work.job.prompt.layout
    words = layout.prompt.numel()
    places = torch.cat([layout.prompt, layout.answer_start - 1 + torch.arange(stop - 1)])
    ids = task.targets
    targets = ids[words:]
    known = torch.arange(words + stop - 1)[None] < words + torch.arange(stop)[:, None]
    counted = known & (ids[:-1][None] != targets[:, None])
    with torch.no_grad():
        states = work.hidden[places.to(work.hidden.device)].float()
        rows = work.job.head.rows(targets, work.hidden[:1]).float().to(states.device)
        scores = (rows @ states.T).relu().cpu()
    return scores * counted, counted


def _attention(task: Task, start: int, words: int, stop: int) -> Tensor:
    """Read how the row that predicts each target attends to the positions that hold the context tokens: (T, K)."""
    from tam_fast.methods.attention import attention_rows

    holding = torch.cat([task.layout.prompt, start + torch.arange(stop - 1)])
    rows = attention_rows(task, task.rows[words:])
    return rows[:, holding.to(rows.device)].float().cpu()
