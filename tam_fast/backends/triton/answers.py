"""From scores to finished maps: whole answers, one more token of a stream, and the operators that are parts of that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tam_fast.backends.arguments import float_rows, indices
from tam_fast.backends.contracts import DeviceAnswer, DeviceStep
from tam_fast.backends.triton import launch
from tam_fast.backends.triton.finishing import finish
from tam_fast.backends.triton.interference import interference, interference_from_states
from tam_fast.backends.triton.operands import ContextStates, Item, Rows, Work
from tam_fast.backends.triton.scores import step_scores

__all__ = ["answer_maps", "estimated_causal_inference", "finish_maps", "step_answer"]


def _run(items: Sequence[Item], kernel_size: int, constant_nan: bool, *, causal: bool = False) -> None:
    """Interference and what follows, in two launches; in three where maps are large or windows wide."""
    items = [item for item in items if item.shape[0]]
    if not items:
        return
    device = items[0].maps.device
    with launch.on(device):
        jobs = [(item, Work(item, device)) for item in items]
        read = [job for job in jobs if job[0].states is None]
        # Each launch is configured before the first one runs: measuring overwrites what they hand on.
        launches = [interference(read, device)] if read else []
        launches += [interference_from_states(*job) for job in jobs if job[0].states is not None]
        launches.append(finish(jobs, device, kernel_size, constant_nan, causal))
        for run in launches:
            run()


def estimated_causal_inference(
    activation: list[Tensor], context: list[Tensor], relevance: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Causal maps (T, N) and scales (T,), float32, from (T, N), (K, N), (T, K) of every answer. Two launches."""
    items = []
    for given in zip(activation, context, relevance, strict=True):
        a, c, r = (float_rows(x) for x in given)
        causal = torch.empty(a.shape, dtype=torch.float32, device=a.device)
        scale = torch.empty(a.shape[0], dtype=torch.float32, device=a.device)
        shape = a.shape[0], c.shape[0], a.shape[1]
        items.append(Item(Rows(a), Rows(c), Rows(r), None, None, 0, None, shape, (), causal, None, scale, None))
    _run(items, 1, False, causal=True)
    return [item.maps for item in items], [item.scale for item in items]


def finish_maps(
    scores: list[Tensor],
    activation_rows: list[Tensor],
    context_rows: list[Tensor] | None,
    relevance: list[Tensor],
    text_relevance: list[Tensor],
    text_length: list[Tensor],
    grids: list[list[tuple[int, int]]],
    kernel_size: int,
    *,
    constant_window_nan: bool = False,
    out: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Scores to finished maps; arguments and results as in ``tam_fast.backends.cpu.finish_maps``."""
    items, results = [], []
    for index, (given, weights, words) in enumerate(zip(scores, relevance, text_relevance, strict=True)):
        rows, r, text, device = float_rows(given), float_rows(weights), float_rows(words), given.device
        shape = r.shape[0], r.shape[1], rows.shape[1]
        places = (
            torch.empty((shape[0], shape[2]), dtype=torch.float32, device=device),
            torch.empty(text.shape, dtype=torch.float32, device=device),
            torch.empty(shape[0], dtype=torch.float32, device=device),
            torch.empty(shape[0], dtype=torch.bool, device=device),
        )
        results.append(places)
        items.append(
            Item(
                Rows(rows, indices(activation_rows[index], device)),
                Rows(rows, None if context_rows is None else indices(context_rows[index], device)),
                Rows(r),
                None,
                Rows(text),
                text.shape[1],
                indices(text_length[index], device),
                shape,
                grids[index],
                *places,
            )
        )
    _run(items, kernel_size, constant_window_nan)
    for index, given_places in enumerate(out or ()):
        for place, found in zip(given_places, results[index], strict=True):
            place.copy_(found)
    return [o[0] for o in results], [o[1] for o in results], [o[2] for o in results], [o[3] for o in results]


def _answer(answer: DeviceAnswer, states: ContextStates | None) -> Item:
    targets, contexts = answer.relevance.shape
    positions = answer.maps.shape[1]
    relevance = Rows(answer.scores, answer.target_rows, positions)
    context = Rows(answer.scores, answer.context_rows)
    return Item(
        activation=Rows(answer.scores, answer.target_rows),
        context=context if states is None else None,
        relevance=relevance,
        names=(answer.context_names, answer.target_names, answer.lengths),
        text=relevance,
        text_size=contexts,
        text_lengths=answer.text_lengths,
        shape=(targets, contexts, positions),
        sizes=answer.sizes,
        maps=answer.maps,
        text_out=answer.relevance,
        scale=answer.scale,
        flat=answer.flat,
        states=states,
    )


def answer_maps(
    answers: list[DeviceAnswer],
    kernel_size: int,
    *,
    constant_window_nan: bool = False,
    states: Sequence[ContextStates | None] | None = None,
) -> None:
    """Finish the maps of some answers from their scores; results go to each answer's last four tensors.

    Two launches for all of them; a third one filters where windows are wider than 7 or maps larger than 16,384.

    Parameters
    ----------
    states : sequence of ContextStates or None, optional
        For an answer with states, context maps are made inside the kernel and never written: its scores need rows for
        its targets only, and ``context_rows`` may be empty. Where ``context_rows`` is given too, it is cheaper to read
        the maps, and they are read. One launch more for each such answer.
    """
    items = []
    for index, answer in enumerate(answers):
        given = None if states is None else states[index]
        made = given is not None and answer.context_rows.numel() == 0 and answer.relevance.shape[1] > 0
        items.append(_answer(answer, given if made else None))
    for dtype in (torch.float32, torch.uint8):
        _run([item for item in items if item.maps.dtype == dtype], kernel_size, constant_window_nan)


def step_answer(step: DeviceStep, kernel_size: int) -> None:
    """Score one more token of a stream and finish its map, in three launches; see ``DeviceStep``."""
    step_scores(step)
    answer_maps([step.as_answer()], kernel_size)
