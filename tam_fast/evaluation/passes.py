"""The maps of every method for one answer, from as few passes of the model as they allow: :class:`Subject`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tam_fast.evaluation.baselines import BASELINES, baseline_maps
from tam_fast.evaluation.forced import Forced
from tam_fast.methods.attribution import check_method, checked_options, raw_maps
from tam_fast.methods.filters import filtered
from tam_fast.methods.refining import Recipe, check_scale, parse, refine, scaled
from tam_fast.methods.registry import method_of
from tam_fast.methods.task import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tam_fast.explain.explainer import Explainer
    from tam_fast.explain.job import Job
    from tam_fast.maps.canvas import Canvas
    from tam_fast.maps.layout import Layout

__all__ = ["SCALES", "Maps", "Spec", "Subject", "all_methods", "read_method"]

SCALES = ("map", "answer", "joint")
"""How maps come to [0, 1]: each by its own extremes, all of the answer together, or with the text's relevance (TAM)."""

_OF_CONTEXT = ("eci", "eci_mean", "eci_attention")
_ALONE = ("logit", "perturbation")  # kinds whose maps of all targets are better made at once, or depend on each other


@dataclass(frozen=True)
class Spec:
    """A method as a column of a table.

    Attributes
    ----------
    name : str
        As rows and tables have it: ``"tam"``, ``"layer_cam+eci+rgf"``, ``"cam@joint"``, ``"random"``.
    recipe : Recipe or None
        None for a map that knows nothing of the image.
    scale : str
        One of :data:`SCALES`.
    options : mapping
        Of the method, all of them.
    """

    name: str
    recipe: Recipe | None
    scale: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        return "none" if self.recipe is None else method_of(self.recipe.method).cost


def read_method(text: str, scale: str = "map", options: Mapping[str, Any] | None = None) -> Spec:
    """Read ``METHOD[+INTERFERENCE][+FILTER][@SCALE]``, ``random``, ``centre`` or ``uniform``.

    ``tam`` is on TAM's own scale (``joint``); all others on `scale`, if they do not name one. ``joint`` is of maps that
    are in the units of the text's relevance: ``cam``, and what is done to it.

    Raises
    ------
    ValueError, TypeError
        If a part is unknown, or the scale is not the method's.
    """
    if not isinstance(text, str):
        raise TypeError(f"methods: expected names, got {type(text).__name__}")
    check_scale(scale)
    name, at, own = text.strip().partition("@")
    if at and own not in SCALES:
        raise ValueError(f"methods: expected one of {', '.join(SCALES)} behind '@', got {text!r}")
    if name in BASELINES:
        if at or options:
            raise ValueError(f"methods: expected neither scale nor options with {name!r}, got {text!r}")
        return Spec(name, None, "map")
    recipe = parse(name)
    chosen = own or ("joint" if name == "tam" else scale)
    if chosen == "joint" and recipe.method != "cam":
        raise ValueError(f"methods: expected '@joint' with cam alone, whose maps are in the text's units, got {text!r}")
    default = "joint" if name == "tam" else scale
    method = method_of(recipe.method)
    return Spec(
        name if chosen == default else f"{name}@{chosen}", recipe, chosen, checked_options(method, options or {})
    )


def all_methods(model: Any) -> list[str]:
    """List every method that a model can be explained by, but for those of test sizes alone (``attention_flow``)."""
    from tam_fast.methods.attribution import available

    return [name for name, reason in available(model).items() if not reason and name != "attention_flow"]


@dataclass(eq=False)
class Maps:
    """What a method says of one answer.

    Attributes
    ----------
    spec : Spec
    values : (T, N) float32 ndarray
        In [0, 1], over the cells of all grids, on the scale of the method.
    rasters : (T, h, w) float32 ndarray
        The same, joined on the image's raster.
    seconds : float
        What they took beyond the pass that all methods have in common.
    """

    spec: Spec
    values: NDArray[np.float32]
    rasters: NDArray[np.float32]
    seconds: float


class _OncePass(Task):
    """A task whose final states are made once for all methods that read them."""

    @cached_property
    def _states(self) -> Tensor:
        return super().hidden()

    def hidden(self) -> Tensor:
        """Return final hidden states (S, C), without a graph."""
        return self._states

    def with_inputs(self, inputs: Mapping[str, Any]) -> Task:
        """Make the same task of other values of the same inputs, whose states are others."""
        other = super().with_inputs(inputs)
        other.__dict__.pop("_states", None)
        return other

    def with_prompt(self) -> Task:
        """Make the same task, the words of the prompt explained too; what was run already is shared."""
        other = _OncePass(self.model, self.inputs, self.layout, self.token_ids, with_prompt=True)
        other.__dict__["call"] = self.call
        other.__dict__["_states"] = self._states
        return other


@dataclass(frozen=True, eq=False)
class _Asked(Forced):
    subject: Subject

    def task(self, with_prompt: bool = False) -> Task:
        """Return the task that the subject has already."""
        return self.subject.task.with_prompt() if with_prompt else self.subject.task


class Subject:
    """One answer that is measured: what was asked and said, and the model's pass over it.

    Parameters
    ----------
    explainer : Explainer
    image : PIL image
    prompt : str
    token_ids : sequence of int (T,)
        The answer, as it was frozen.
    seed : int
        Of what is drawn at random for it.
    compat : None or "official"
        Of ``tam``: see :func:`tam_fast.activation_maps`.

    Attributes
    ----------
    job : Job
    layout : Layout
    canvas : Canvas
        The image's raster.
    seconds : float
        What the pass over prompt and answer took, once it was made.
    """

    def __init__(
        self,
        explainer: Explainer,
        image: Any,
        prompt: str,
        token_ids: Sequence[int],
        *,
        seed: int = 0,
        compat: str | None = None,
    ) -> None:
        self.explainer, self.image, self.prompt = explainer, image, prompt
        self.token_ids = [int(token) for token in token_ids]
        self.seed, self.compat = seed, compat
        self.seconds = 0.0
        self.job: Job = explainer._prepare(image, prompt, 3)
        self.layout: Layout = self.job.prompt.layout
        self.canvas: Canvas = self.layout.canvas(0)
        self._raw: dict[tuple[str, str, bool], Tensor] = {}

    def __len__(self) -> int:
        """Return the number of the answer's tokens, T."""
        return len(self.token_ids)

    @cached_property
    def task(self) -> _OncePass:
        """The teacher-forced answer; its states are made when they are first asked for."""
        import torch

        ids = torch.cat([self.job.prompt.input_ids, torch.tensor(self.token_ids)])
        inputs = self.job.model_inputs(self.token_ids[:-1])
        began = time.perf_counter()
        task = _OncePass(self.job.model, inputs, self.layout, ids)
        task.hidden()
        self.seconds = time.perf_counter() - began
        return task

    @cached_property
    def forced(self) -> Forced:
        """The answer, to ask the model about it again; the passes that were made are not made anew."""
        return _Asked(self.job, self.token_ids, self)

    @cached_property
    def _task_of_words(self) -> Task:
        """The same with the words of the prompt for targets, which causal inference needs the maps of."""
        task = self.task.with_prompt()
        words = self.layout.prompt.numel()
        task.targets, task.rows = task.targets[:words], task.rows[:words]
        return task

    # Maps ----------------------------------------------------------------------------------------

    def maps(self, spec: Spec) -> Maps:
        """Make the maps of a method.

        Raises
        ------
        ModelNotSupportedError, ValueError
            If the model cannot be explained by it.
        """
        _ = self.task
        began = time.perf_counter()
        if spec.recipe is None:
            made = baseline_maps(spec.name, self.layout, len(self), self.seed)
        else:
            made = self._made(spec)
        seconds = time.perf_counter() - began
        rasters = self.canvas.join(made).numpy()
        return Maps(spec, made.numpy(), rasters, seconds)

    def _made(self, spec: Spec) -> Tensor:
        """Make maps (T, N) in [0, 1]."""
        recipe = spec.recipe
        assert recipe is not None
        if spec.scale != "joint":
            return scaled(self._refined(recipe, recipe.filter, spec.options), spec.scale)
        return self._tam() if recipe == parse("tam") else self._joint(recipe)

    def _tam(self) -> Tensor:
        """Make TAM's maps with the library's own kernels."""
        import torch

        from tam_fast.explain.job import Work, make_maps

        compat: Any = self.compat
        with torch.no_grad():
            found = make_maps([Work(self.job, self.token_ids, self.task.hidden(), [(0, len(self))])], compat)[0]
        return torch.nan_to_num(found.maps, nan=0.0)

    def _joint(self, recipe: Recipe) -> Tensor:
        """Scale maps together with the text's relevance (Eq. 3 of the TAM paper), then filter them."""
        import torch

        causal = self._refined(recipe, None, {})
        text, known, _ = self._text
        low = torch.minimum(causal.amin(dim=1), torch.where(known, text, torch.inf).amin(dim=1))
        high = torch.maximum(causal.amax(dim=1), torch.where(known, text, -torch.inf).amax(dim=1))
        extent = (high - low)[:, None]
        shown = torch.where(extent > 0, (causal - low[:, None]) / torch.where(extent > 0, extent, 1.0), 0.0)
        return filtered(shown, self.layout.grids, recipe.filter, self.job.kernel_size).clamp(0.0, 1.0)

    def _refined(self, recipe: Recipe, filter: str | None, options: Mapping[str, Any]) -> Tensor:
        """Make the raw maps (T, N), less what is taken off them, filtered."""
        of_context = recipe.interference in _OF_CONTEXT
        raw = self.raw(recipe.method, options, of_context).clamp_min(0.0)
        context = relevance = counted = None
        words = 0
        if of_context:
            words = self.layout.prompt.numel()
            context = raw[:-1]
            text, _, counted = self._text
            relevance = (self._attention if recipe.interference == "eci_attention" else text) * counted
        made: Tensor = refine(
            raw[words:],
            context,
            relevance,
            interference=recipe.interference,
            filter=filter,
            grids=self.layout.grids,
            kernel_size=self.job.kernel_size,
            counted=counted,
        )
        return made

    def raw(self, name: str, options: Mapping[str, Any] | None = None, with_prompt: bool = False) -> Tensor:
        """Return the raw maps of a method (T, N) float32, signed; those of the prompt's words before them if asked for.

        Made once for all that ask for them.
        """
        import torch

        method = method_of(name)
        given = checked_options(method, options or {})
        key = (name, repr(sorted(given.items(), key=lambda item: item[0])), with_prompt)
        if key not in self._raw:
            check_method(method, self.task.model, given)
            if not with_prompt:
                self._raw[key] = raw_maps(self.task, method, given)
            elif method.kind in _ALONE and name != "cam":
                self._raw[key] = raw_maps(self.task.with_prompt(), method, given)
            else:
                words = raw_maps(self._task_of_words, method, given)
                self._raw[key] = torch.cat([words, self.raw(name, given)])
        return self._raw[key]

    @cached_property
    def _text(self) -> tuple[Tensor, Tensor, Tensor]:
        """How each context token (K,) bears on each target: (T, K) float32; which are its context; which count."""
        import torch

        layout, task, count = self.layout, self.task, len(self)
        words = layout.prompt.numel()
        places = torch.cat([layout.prompt, layout.answer_start - 1 + torch.arange(count - 1)])
        ids = torch.cat([task.token_ids[layout.prompt], task.targets])
        known = torch.arange(words + count - 1)[None] < words + torch.arange(count)[:, None]
        counted = known & (ids[:-1][None] != ids[words:, None])
        with torch.no_grad():
            states = task.hidden()[places.to(task.device)].float()
            rows = task.classifier_rows(ids[words:]).float().to(states.device)
            scores = (rows @ states.T).relu().cpu()
        return scores * known, known, counted

    @cached_property
    def _attention(self) -> Tensor:
        """How the position that predicts each target attends to those that hold the context tokens: (T, K)."""
        import torch

        from tam_fast.methods.weights import attention_rows

        holding = torch.cat([self.layout.prompt, self.layout.answer_start + torch.arange(len(self) - 1)])
        rows = attention_rows(self.task, self.task.rows)
        found: Tensor = rows[:, holding.to(rows.device)].float().cpu()
        return found

    def drop(self) -> None:
        """Forget the maps of methods that are done."""
        self._raw.clear()

    # The image -----------------------------------------------------------------------------------

    def on_raster(self, picture: NDArray[Any], background: int = 0) -> NDArray[Any]:
        """Cut a mask (H, W) of the image to the part that the raster covers; what lies beyond it is background.

        Where the processor cut a part of the image away the model has not seen it, and where it padded the image there
        is nothing to see.
        """
        height, width = picture.shape[:2]
        x0, y0, x1, y1 = self.canvas.box
        edges = [round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)]
        if edges == [0, 0, width, height]:
            return picture
        left, top, right, bottom = edges
        cut = np.full((max(bottom - top, 1), max(right - left, 1)), background, dtype=picture.dtype)
        inside = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        row, column = max(-top, 0), max(-left, 0)
        cut[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
        return cut
