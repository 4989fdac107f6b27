"""What the images do to the probability of an answer: one more pass, over the prompt without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tam_fast.explain.generation import force
from tam_fast.explain.job import Job
from tam_fast.explanation.grounding import Contrast
from tam_fast.models.chat import Chat
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.inputs import prepare_chat
from tam_fast.models.logits import Transform
from tam_fast.models.recording import record

__all__ = ["blind_job", "contrast_of", "without_images"]

# Answer positions whose logits are made at a time: 32 x 151,936 float32 values are 19 MB.
_LOGIT_ROWS = 32


def without_images(chat: Chat) -> Chat:
    """Take the images and videos out of a chat; all texts stay as they are."""
    messages = tuple(
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
        for message in chat.messages
    )
    return replace(chat, messages=messages, images=[], videos=[])


def blind_job(job: Job) -> Job:
    """Prepare the same chat without its images and videos, as if the text alone had been asked.

    Raises
    ------
    ModelNotSupportedError
        If the processor takes no prompt without images.
    ValueError
        If there is neither an image nor a video to leave out, or no text is left.
    """
    if not job.chat.images and not job.chat.videos:
        raise ValueError("grounding: expected an image or a video to leave out for 'contrast', got a prompt without")
    chat = without_images(job.chat)
    try:
        prompt = prepare_chat(job.model, job.processor, chat, job.prompt.special_tokens)
    except (ModelNotSupportedError, ValueError) as error:
        raise type(error)(_refused(job, error)) from error
    return replace(job, chat=chat, prompt=prompt)


def contrast_of(
    job: Job, blind: Job, ids: Sequence[int], hidden: Tensor, steps: Sequence[int] | None = None
) -> Contrast:
    """Compare the probability of each token of an answer with and without the images.

    With them, from the final states at hand; without them, from a pass over the same chat and answer in which the
    prompt's images and videos are left out, as if the text alone had been asked. The pass also shows what the model
    does to the logits of its lm_head, which is done to both.

    Parameters
    ----------
    job : Job
        Of the prompt with its images.
    blind : Job
        Of the same prompt without them, see :func:`blind_job`.
    ids : sequence of T int
        The answer.
    hidden : (P + T - 1, C) Tensor
        Final states of prompt and answer, as :func:`tam_fast.explain.generation.force` returns them.
    steps : sequence of int, optional
        Which of the answer's tokens; all if not given.

    Returns
    -------
    Contrast
        On the CPU. A probability below what float32 can tell the logarithm of counts as its lowest number.

    Raises
    ------
    ModelNotSupportedError
        If the model takes no prompt without images, or its logits are not its classifier's.
    """
    answer = list(ids)
    with torch.no_grad(), record(job.model, job.head, 1) as seen:
        try:
            _, blind_hidden, _ = force(blind, answer)
        except (ModelNotSupportedError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model that reads its images unasked raises what it likes
            raise ModelNotSupportedError(_refused(job, error)) from error
    shown = seen.transform(job.head) or Transform()  # force() has refused what is none
    places = torch.arange(len(answer)) if steps is None else torch.tensor(list(steps), dtype=torch.int64)
    targets = torch.tensor(answer)[places]

    def read(one: Job, states: Tensor) -> Tensor:
        rows = states[one.prompt.layout.answer_start - 1 :][places.to(states.device)]
        return _log_probabilities(one, rows, targets, shown, seen.closed)

    with torch.no_grad():
        return Contrast(read(job, hidden), read(blind, blind_hidden))


def _refused(job: Job, error: Exception) -> str:
    why = " ".join(str(error).split())[:300]
    return (
        f"grounding: expected a model and a processor that take the prompt without its images for 'contrast', got "
        f"{type(error).__name__} from {type(job.model).__name__}: {why}"
    )


def _log_probabilities(job: Job, rows: Tensor, targets: Tensor, shown: Transform, closed: Tensor | None) -> Tensor:
    """Read the logarithm of the probability of tokens (T,) from the states (T, C) that predict them: (T,) float32."""
    lowest = torch.finfo(torch.float32).min
    found = torch.empty(len(targets), dtype=torch.float32)
    for begin in range(0, len(targets), _LOGIT_ROWS):
        some = slice(begin, begin + _LOGIT_ROWS)
        logits = shown(job.head.module(rows[some][None])[0])
        if closed is not None:
            logits = logits.masked_fill(closed.to(logits.device), torch.finfo(logits.dtype).min)
        wanted = targets[some].to(logits.device)[:, None]
        inside = wanted < logits.shape[1]  # beyond them are rows that the model never shows
        chosen = logits.float().log_softmax(dim=1).gather(1, wanted.clamp(max=logits.shape[1] - 1))
        found[some] = torch.where(inside, chosen, lowest)[:, 0].cpu()
    return torch.nan_to_num(found, nan=float("nan"), neginf=lowest).clamp(max=0.0)
