"""Answers whose hidden states another engine wrote: :class:`Recorded`, which explains them without the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tam_fast.engines import Classifier, vllm
from tam_fast.explain.answers import answer_ids
from tam_fast.explain.job import Job
from tam_fast.explain.states import explain_states
from tam_fast.explanation import Explanation
from tam_fast.models.chat import Chat
from tam_fast.models.embedded import ASSETS
from tam_fast.models.images import load_images
from tam_fast.models.inputs import PromptInputs, prepare_chat
from tam_fast.models.processors import load_processor

__all__ = ["Recorded"]

_SUFFIX = ".safetensors"
_WAIT = 10.0
"""Seconds for which a file is waited for whose lock says that it is written to."""


class Recorded:
    """Stands in an Explainer's place: its maps are made of files that vLLM wrote, one a row.

    Parameters
    ----------
    classifier : Classifier
    processor : transformers processor
        As the engine used it: the prompt's token ids are compared with those that it wrote.
    folder : Path
        Of ``ID.safetensors``, see :mod:`tam_fast.engines.vllm`.
    """

    def __init__(self, classifier: Classifier, processor: Any, folder: Path) -> None:
        self.classifier, self.processor, self._folder = classifier, processor, folder
        self.model = _Head(classifier)

    @classmethod
    def from_folder(cls, model: str | None, folder: str | os.PathLike[str], dtype: str = "auto") -> Recorded:
        """Read the lm_head, the final norm and the processor of a model's folder; the embedded model's if None.

        Raises
        ------
        ValueError
            If `folder` is none, or the model's is none.
        """
        states = Path(os.fsdecode(folder))
        if not states.is_dir():
            raise ValueError(f"states: expected a folder of {_SUFFIX} files, got {states}")
        if model is not None and not Path(model).is_dir():
            raise ValueError(f"model: expected a folder with states, got {model!r}")
        source = ASSETS if model is None else Path(model)
        found = Classifier.from_folder(source)
        # The embedded model runs in float32, however it is stored.
        kind = torch.float32 if model is None and dtype == "auto" else getattr(torch, dtype, found.weight.dtype)
        bias = None if found.bias is None else found.bias.to(kind)
        norm: Any = found.norm
        classifier = Classifier(found.weight.to(kind), bias, norm.to(kind), found.config, found.name)
        return cls(classifier, load_processor(source), states)

    def explain_batch(self, requests: Sequence[Mapping[str, Any]], batch_size: int = 8) -> list[Explanation]:  # noqa: ARG002
        """Explain rows one after another: ``id``, ``images``, ``prompt``, ``answer``, ``kernel_size``, ``compat``.

        Raises
        ------
        Exception
            Begins with the number of the request, ``requests[3]: ...``; what was explained before is in its
            ``explanations``.
        """
        found: list[Explanation] = []
        for number, request in enumerate(requests):
            try:
                found.append(self._explain(**request))
            except Exception as error:  # noqa: PERF203 (whose it is)
                kind: Any = MemoryError if isinstance(error, MemoryError) else ValueError
                named = kind(f"requests[{number}]: {error}")
                named.explanations = found
                raise named from error
        return found

    def _explain(
        self, id: str, images: Sequence[Any], prompt: str, answer: str | None = None, **options: Any
    ) -> Explanation:
        if not answer:
            raise ValueError("answer: expected a text, whose states are recorded, got none")
        pictures = load_images(images)
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
        chat = Chat(({"role": "user", "content": content},), pictures, [], 0, prompt)
        asked = prepare_chat(self.classifier.config, self.processor, chat)
        file = self._file(id)
        ids, states = self._states(file, chat, asked, answer)
        of = self.classifier
        return explain_states(
            states.to(of.weight.dtype),
            of.weight,
            ids,
            asked.layout,
            tokenizer=self.processor.tokenizer,
            images=pictures,
            classifier_bias=of.bias,
            norm=of.norm,
            prompt=prompt,
            model=of.name,
            **options,
        )

    def _file(self, id: str) -> Path:
        name = f"{id}{_SUFFIX}"
        path = Path(os.path.realpath(self._folder / name)) if "\0" not in name else self._folder.parent
        if not path.is_relative_to(os.path.realpath(self._folder)):
            raise ValueError(f"states: expected a file inside {self._folder} for {id!r}, got one outside")
        return path

    def _states(self, file: Path, chat: Chat, asked: PromptInputs, answer: str) -> tuple[Any, Any]:
        """Return the ids of prompt and answer, and the rows of a file."""
        lock = file.with_name(f"{file.name}.lock").exists()
        wait = _WAIT if lock else 0.0
        spelt = self._spelt(chat, asked, answer)
        try:
            return spelt, vllm.read(file, spelt, timeout=wait, lock=lock).hidden
        except ValueError:
            # A model need not write a text in the tokens that a tokenizer would.
            found = vllm.read(file, None, timeout=wait, lock=lock)
            said = self._said(asked.input_ids, found.token_ids.tolist(), answer)
            if said is None:
                raise
            return said, found.hidden[: len(said) - 1]

    def _spelt(self, chat: Chat, asked: PromptInputs, answer: str) -> list[int]:
        """Tokenise an answer as the continuation of the prompt."""
        model: Any = SimpleNamespace(config=self.classifier.config)
        head: Any = SimpleNamespace(size=self.classifier.weight.shape[0])
        ids = answer_ids(Job(model, self.processor, head, chat, asked, 3), answer)
        return [*asked.input_ids.tolist(), *ids]

    def _said(self, prompt: torch.Tensor, found: list[int], answer: str) -> list[int] | None:
        """Tell the ids of prompt and answer from those of a file, which may lack the last; None if they are others."""
        start = len(prompt)
        if found[:start] != prompt.tolist():
            return None
        tokenizer = self.processor.tokenizer

        def reads(ids: list[int]) -> str:
            text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return text

        tail = found[start:]
        if tail and reads(tail) == answer:
            return found
        rest = answer.removeprefix(reads(tail))
        last = tokenizer(rest, add_special_tokens=False)["input_ids"]
        if len(last) == 1 and reads([*tail, *last]) == answer:
            return [*found, *last]
        return None


class _Head(torch.nn.Module):
    """What there is of the model, as :func:`tam_fast.models.fingerprint.fingerprint` looks at one."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.config, self.name_or_path, self.dtype = classifier.config, classifier.name, classifier.weight.dtype
        self.register_buffer("weight", classifier.weight)
        self.register_buffer("bias", classifier.bias)
        self.norm: Any = classifier.norm
