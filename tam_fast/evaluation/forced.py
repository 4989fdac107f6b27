"""A question, its images and a fixed answer, which a model is asked about again and again: :class:`Forced`.

The answer is teacher-forced: one forward pass gives the probabilities of all of its tokens, and other images, answers
or prompts change only what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tam_fast.explain.answers import answer_ids, whole_answer
from tam_fast.explain.explainer import Explainer
from tam_fast.explain.job import Job
from tam_fast.maps.layout import Layout
from tam_fast.methods.task import Task
from tam_fast.models.chat import read_chat
from tam_fast.models.heads import Head
from tam_fast.models.images import load_images
from tam_fast.models.inputs import prepare_chat
from tam_fast.models.wrappers import uncompiled

__all__ = ["Forced", "forced"]


@dataclass(frozen=True, eq=False)
class Forced:
    """One answer to one question about images, fixed.

    Attributes
    ----------
    job : Job
        The model, its processor, the prepared prompt and its images.
    answer : list of T int
        Token ids, without an end mark.
    """

    job: Job
    answer: list[int]

    @property
    def model(self) -> Any:
        """The model."""
        return self.job.model

    @property
    def layout(self) -> Layout:
        """Where the visual cells, the prompt's text and the answer stand."""
        return self.job.prompt.layout

    @property
    def images(self) -> list[Image.Image]:
        """The images, RGB."""
        return self.job.chat.images

    @property
    def token_ids(self) -> Tensor:
        """Prompt and answer (S + 1,), as methods take them."""
        return torch.cat([self.job.prompt.input_ids, torch.tensor(self.answer)])

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model's forward takes over prompt and answer, without the answer's last token."""
        return self.job.model_inputs(self.answer[:-1])

    def task(self, with_prompt: bool = False) -> Task:
        """Make the task that methods explain; see :class:`tam_fast.methods.task.Task`."""
        return Task(self.model, self.inputs, self.layout, self.token_ids, with_prompt)

    def with_answer(self, answer: Any) -> Forced:
        """Force another answer, a text or token ids."""
        return Forced(self.job, _ids(self.job, answer))

    def with_images(self, images: Any) -> Forced:
        """Ask the same about other images of the same sizes.

        Raises
        ------
        ValueError
            If they are not as many, or their visual cells lie otherwise.
        """
        pictures = load_images(images)
        before = [picture.size for picture in self.images]
        after = [picture.size for picture in pictures]
        if after != before:
            raise ValueError(f"images: expected pictures of {before} (width, height), got {after}")
        other = self._asked(replace(self.job.chat, images=pictures))
        if other.layout != self.layout:
            raise ValueError("images: expected pictures whose visual cells lie as before, got others")
        return other

    def with_prompt(self, prompt: str) -> Forced:
        """Ask another question about the same images, with the same answer."""
        return self._asked(read_chat(self.images, prompt))

    def _asked(self, chat: Any) -> Forced:
        job = self.job
        prompt = prepare_chat(job.model, job.processor, chat, job.prompt.special_tokens)
        return Forced(replace(job, chat=chat, prompt=prompt), self.answer)

    def log_probabilities(self, task: Task | None = None) -> Tensor:
        """Return log p (T,) of the answer's tokens, float64 on the CPU.

        Parameters
        ----------
        task : Task, optional
            Of the same model and answer, which is asked what the model does to its logits; saves a pass.
        """
        mine = self.task()
        with torch.no_grad(), uncompiled(mine.model):
            told = (mine if task is None else task).log_probabilities(mine.hidden())
        return told.to("cpu", torch.float64)


def forced(explainer: Explainer, images: Any, answer: str | Sequence[int], prompt: str | None = None) -> Forced:
    """Fix an answer to a question about images.

    Parameters
    ----------
    explainer : Explainer
    images : image or list of images
        As :meth:`tam_fast.Explainer.explain` takes them.
    answer : str or token ids (T,)
    prompt : str, optional
        The question; the explainer's own if None.

    Returns
    -------
    Forced

    Raises
    ------
    ValueError, TypeError, ModelNotSupportedError
        As :meth:`tam_fast.Explainer.explain`.
    """
    if explainer.model.training:
        raise ValueError("explainer: expected a model in evaluation mode, got training mode: call model.eval()")
    chat = read_chat(images, prompt)
    inputs = prepare_chat(explainer.model, explainer.processor, chat)
    job = Job(explainer.model, explainer.processor, Head(explainer.model), chat, inputs, kernel_size=3)
    return Forced(job, _ids(job, answer))


def _ids(job: Job, answer: Any) -> list[int]:
    if isinstance(answer, str):
        answer = whole_answer(job, answer)
    found = answer_ids(job, answer)
    if not found:
        raise ValueError("answer: expected at least one token, got none")
    return found
