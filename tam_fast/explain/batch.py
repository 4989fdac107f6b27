"""Several requests at a time: :func:`explain_all`, what stands behind ``Explainer.explain_batch``."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tam_fast.explain.answers import end_ids, without_end
from tam_fast.explain.generation import candidates_of, doubt, force
from tam_fast.explain.job import CANDIDATES, Job
from tam_fast.explain.progress import progress as show_progress
from tam_fast.explain.request import Made, Request, explanations
from tam_fast.explanation import Explanation
from tam_fast.models.batches import Side, fits, join, last_positions, record_rows, why_apart
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.recording import Recording
from tam_fast.models.wrappers import uncompiled

__all__ = ["explain_all"]

_log = logging.getLogger(__name__)

_Outcome: TypeAlias = "Made | Exception"

# Settings of generate() that work on each row of a batch as they do on that row alone. Lengths that count the prompt
# would count its padding, and n-grams would be found in it.
_BY_ROW = frozenset(
    {
        "max_new_tokens",
        "min_new_tokens",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "renormalize_logits",
        "remove_invalid_values",
        "suppress_tokens",
        "bad_words_ids",
        "use_cache",
        "disable_compile",
        "return_dict_in_generate",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "transformers_version",
        "_from_model_config",
    }
)
# Values of others with which they do nothing; False is one for all.
_NEUTRAL: Mapping[str, float] = MappingProxyType(
    {
        "num_beams": 1,
        "num_beam_groups": 1,
        "num_return_sequences": 1,
        "length_penalty": 1.0,
        "diversity_penalty": 0.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "min_length": 0,
    }
)


def explain_all(
    prepare: Callable[..., Request],
    requests: Iterable[Mapping[str, Any]],
    batch_size: int = 8,
    progress: bool = False,
) -> list[Explanation]:
    """Explain requests, some of them at a time.

    Requests are taken from the iterable a batch at a time, and checked and prepared before any of the batch is run. In
    a batch those run together whose model, settings of ``generate`` and inputs allow it (:mod:`tam_fast.models.batches`
    has which); the others run one by one, and so do those that fail together (out of memory, for one); the log says
    why. Maps of a batch are made by one call; then its states
    are let go.

    Sampling draws the random numbers of all rows of a batch together: others than one by one.

    Parameters
    ----------
    prepare : callable
        Makes a request of its arguments, checked.
    requests : iterable of mapping
    batch_size : int
    progress : bool

    Returns
    -------
    list of Explanation
        In order. ``elapsed`` has for what was run together each one's even share, but for ``total``, which is the time
        from its preparation on.

    Raises
    ------
    Exception
        As `prepare` and the model raise; what is one request's fault begins with its number, as ``requests[3]: ...``,
        the first being 0. What was explained before is not lost: it is in the error's ``explanations``, those of
        ``requests[0]``, ``requests[1]``, ... in order.
    """
    size = _check_size(batch_size)
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, Iterable):
        raise TypeError(f"requests: expected dicts of explain()'s arguments, got {type(requests).__name__}")
    found: list[Explanation] = []
    total = len(requests) if isinstance(requests, Sized) else None
    try:
        with show_progress(total, "explaining", progress) as shown:
            rest = enumerate(requests)
            while batch := list(itertools.islice(rest, size)):
                _explain(prepare, batch, found)
                shown.advance(len(batch))
    except BaseException as error:
        _hand_on(error, found)
        raise
    return found


def _explain(
    prepare: Callable[..., Request], batch: Sequence[tuple[int, Mapping[str, Any]]], found: list[Explanation]
) -> None:
    """Explain a batch of numbered requests, and add its explanations to those that there are."""
    asked: list[Request] = []
    for number, arguments in batch:
        with _named(number):
            if not isinstance(arguments, Mapping):
                raise TypeError(f"expected a dict of explain()'s arguments, got {type(arguments).__name__}")
            asked.append(prepare(**arguments))
    outcomes = _run(asked)
    made = list(itertools.takewhile(lambda outcome: isinstance(outcome, Made), outcomes))
    done: list[Made] = [outcome for outcome in made if isinstance(outcome, Made)]
    try:
        found += explanations(done) if done else []
    except Exception:
        # Whose it is: a state of one that is NaN stops the call for all.
        for (number, _), item in zip(batch, done, strict=False):
            with _named(number):
                found += explanations([item])
    if len(done) < len(outcomes):
        error = outcomes[len(done)]
        assert isinstance(error, Exception)
        with _named(batch[len(done)][0]):
            raise error


def _check_size(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__"):
        raise TypeError(f"batch_size: expected a whole number, got {batch_size!r}")
    size = int(batch_size.__index__())
    if size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {size}")
    return size


@contextlib.contextmanager
def _named(number: int) -> Iterator[None]:
    """Put a request's number before the message of an error of the block; its type stays."""
    try:
        yield
    except Exception as error:
        message = f"requests[{number}]: {error}"
        try:
            named = type(error)(message)
        except Exception:  # a type whose errors are made of something else
            _note(error, f"in requests[{number}]")
            raise error from error.__cause__
        raise named from error


def _hand_on(error: BaseException, found: list[Explanation]) -> None:
    """Put what was explained on an error."""
    with contextlib.suppress(AttributeError, TypeError):
        error.explanations = found  # type: ignore[attr-defined]
        if found:
            _note(error, f"{len(found)} requests before were explained: `explanations` of this error")


def _note(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(text)
    else:
        _log.warning("%s", text)


# ------------------------------------------------------------------------------------------------- what runs together


def _run(requests: Sequence[Request]) -> list[_Outcome]:
    """Run requests; of each what the model made of it, or its own error."""
    outcomes: dict[int, _Outcome] = {}
    groups = _groups(requests)
    if len(groups) > 1:
        _log.info(
            "%d requests are run in %d parts, of %s", len(requests), len(groups), [len(group) for group in groups]
        )
    for group in groups:
        members = [requests[k] for k in group]
        outcomes.update(zip(group, _together(members) if len(group) > 1 else [_alone(members[0])], strict=True))
    return [outcomes[k] for k in range(len(requests))]


def _together(requests: Sequence[Request]) -> list[_Outcome]:
    """Run requests together; one by one if that fails, so that whoever's fault it is has the error."""
    try:
        return _generated(requests) if _generates(requests[0]) else _passed(requests)
    except Exception as error:
        _log.warning("%d requests are run one by one; together: %s: %s", len(requests), type(error).__name__, error)
    for request in requests:
        request.job.source = "generated"
    return [_alone(request) for request in requests]


def _alone(request: Request) -> _Outcome:
    try:
        return request.run()
    except Exception as error:
        return error


def _generates(request: Request) -> bool:
    return request.answer is None and request.targets != "prompt"


def _groups(requests: Sequence[Request]) -> list[list[int]]:
    """Find which requests run together: indices, in order."""
    groups: list[list[int]] = []
    apart: set[int] = set()
    for k, request in enumerate(requests):
        why = "" if len(requests) == 1 else _why_apart(request)
        if why:
            _log.info("a request is run by itself: %s", why)
            apart.add(k)
            groups.append([k])
            continue
        fitting = (
            group
            for group in groups
            if group[0] not in apart and all(_fits(requests[other], request) for other in group)
        )
        group = next(fitting, None)
        if group is None:
            groups.append([k])
        else:
            group.append(k)
    return groups


def _fits(one: Request, other: Request) -> bool:
    """Whether two requests run together."""
    if _generates(one) != _generates(other):
        return False
    if _generates(one):
        try:
            if not bool(one.arguments == other.arguments):
                return False
        except (RuntimeError, ValueError):  # of tensors, which are no single truth
            return False
    return fits(one.job.prompt.inputs, other.job.prompt.inputs, one.job.model.config.model_type)


def _why_apart(request: Request) -> str:
    """Say why a request is not run with others: its model, or a setting of generate(); '' if it is."""
    why = why_apart(request.job.model, bool(request.job.chat.videos))
    if why or not _generates(request):
        return why
    settings = _in_effect(request.job.model, request.arguments)
    for name, value in settings.items():
        known = name in _BY_ROW or (name == "max_length" and "max_new_tokens" in settings)
        if not known and value is not False and not (name in _NEUTRAL and value == _NEUTRAL[name]):
            return f"{name} is not known to work on each row of a batch as on one prompt"
    return ""


def _in_effect(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the settings of generate() that are not as they are by default."""
    from transformers import GenerationConfig

    plain = vars(GenerationConfig())
    given = [arguments.get("generation_config"), getattr(model, "generation_config", None)]
    configurations = [vars(configuration) for configuration in given if configuration is not None]
    found: dict[str, Any] = {}
    for settings in (*reversed(configurations), arguments):
        for name, value in settings.items():
            if name == "generation_config" or name.startswith("_") or (value is None and settings is not arguments):
                continue
            found[name] = value
    return {name: value for name, value in found.items() if value is not None and _is_other(value, plain.get(name))}


def _is_other(value: Any, default: Any) -> bool:
    return default is None or not isinstance(value, type(default)) or bool(value != default)


# ------------------------------------------------------------------------------------------------------- together


def _joined(jobs: Sequence[Job], tails: Sequence[Sequence[int]], side: Side) -> dict[str, Any]:
    """Join the prompts of some jobs, tokens behind them; padded by a word of each."""
    rows = [job.model_inputs(tail) for job, tail in zip(jobs, tails, strict=True)]
    fill = [int(job.prompt.input_ids[job.prompt.layout.prompt[0]]) for job in jobs]
    return join(rows, fill, jobs[0].prompt.family, side)


def _generated(requests: Sequence[Request]) -> list[_Outcome]:
    """Generate the answers of several requests by one call; as ``generate`` of :mod:`tam_fast.explain.generation`."""
    began = time.perf_counter()
    jobs, arguments = [request.job for request in requests], requests[0].arguments
    model, lengths = jobs[0].model, [job.prompt.layout.answer_start for job in jobs]
    compiled = arguments.get("generation_config") is not None
    inputs = _joined(jobs, [()] * len(jobs), "left")
    recorded = record_rows(model, jobs[0].head, CANDIDATES, lengths)
    with torch.no_grad(), uncompiled(model, always=compiled), recorded as recordings:
        output = model.generate(**inputs, **arguments)
    sequences = output if isinstance(output, Tensor) else output.sequences
    written: list[list[int]] = sequences[:, max(lengths) :].tolist()
    value = _in_effect(model, arguments).get("eos_token_id")
    stops = set() if value is None else set(torch.as_tensor(value).flatten().tolist())
    share = (time.perf_counter() - began) / len(requests)
    outcomes: list[_Outcome] = []
    for request, recording, row in zip(requests, recordings, written, strict=True):
        began = time.perf_counter()
        stop = next((place for place, token_id in enumerate(row) if token_id in stops), len(row)) + 1
        if len(set(row[stop:])) > 1:
            _log.info("a request is run by itself: generate() went on behind its end mark")
            outcomes.append(_alone(request))
            continue
        try:
            made = _made(request, recording, row, row[:stop])
        except Exception as error:
            outcomes.append(error)
            continue
        request.job.elapsed["generate"] = share + time.perf_counter() - began
        outcomes.append(made)
    return outcomes


def _made(request: Request, recording: Recording, row: list[int], answer: list[int]) -> Made:
    """Cut a row's answer out of what was generated (padding behind it), and prove its states."""
    job = request.job
    ids = without_end(job, answer, end_ids(job, request.arguments))
    with torch.no_grad():
        why = doubt(job, recording, row, len(ids))
    if not why:
        hidden = recording.states.hidden[: job.prompt.layout.answer_start + len(ids) - 1]
        return Made(request, ids, hidden, recording.candidates)
    job.source = "teacher_forced"
    _log.info("states of a pass over the finished answer: %s", why)
    try:
        return Made(request, *force(job, ids))
    except ModelNotSupportedError as error:
        raise ModelNotSupportedError(f"{error} (and while it generated: {why})") from error


def _passed(requests: Sequence[Request]) -> list[_Outcome]:
    """Run the model once over several prompts, given answers behind them; as ``force`` and ``read``."""
    began = time.perf_counter()
    jobs = [request.job for request in requests]
    # The last token predicts nothing that is explained: it gets no position.
    tails = [(request.answer or [])[:-1] for request in requests]
    model, head = jobs[0].model, jobs[0].head
    lengths = [job.prompt.layout.answer_start + len(tail) for job, tail in zip(jobs, tails, strict=True)]
    inputs = _joined(jobs, tails, "right")
    recorded = record_rows(model, head, CANDIDATES, lengths, "right")
    with torch.no_grad(), uncompiled(model), last_positions(head.module, lengths), recorded as recordings:
        model(**inputs, use_cache=False)
    share = (time.perf_counter() - began) / len(requests)
    outcomes: list[_Outcome] = []
    for request, recording, length in zip(requests, recordings, lengths, strict=True):
        began = time.perf_counter()
        try:
            outcomes.append(_read(request, recording, length))
        except ModelNotSupportedError as error:
            _log.info("a request is run by itself: %s", error)
            outcomes.append(_alone(request))  # whose verdict counts
        else:
            request.job.elapsed["forward"] = share + time.perf_counter() - began
    return outcomes


def _read(request: Request, recording: Recording, length: int) -> Made:
    """Prove a row's states, and find what was likely at each of its tokens."""
    job = request.job
    if recording.trouble or len(recording.states) != length:
        raise ModelNotSupportedError(recording.trouble or f"{len(recording.states)} of {length} states were seen")
    hidden = recording.states.hidden
    if request.answer is None:
        places = job.words
        ids: list[int] = job.prompt.input_ids[places].tolist()
        states = hidden[(places - 1).clamp_min(0).to(hidden.device)]
    else:
        job.source = "given"
        ids, states = request.answer, hidden[job.prompt.layout.answer_start - 1 :]
    return Made(request, ids, hidden, candidates_of(job, recording, states, ids))
