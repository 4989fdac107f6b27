"""The work at hand: one prompt about some images, the answer as it grows, and what its explanation is made of."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tam_fast.explanation import Candidate, Explanation
from tam_fast.explanation.kept import KeptStates, keep
from tam_fast.maps.answer import TokenActivationMaps, activation_maps
from tam_fast.maps.tokens import Compat
from tam_fast.models.capture import CapturedCandidates
from tam_fast.models.heads import Head
from tam_fast.models.inputs import PromptInputs
from tam_fast.models.text import TextDecoder, token_pieces
from tam_fast.models.wrappers import input_device

__all__ = ["CANDIDATES", "Job", "Writer"]

CANDIDATES = 3
"""How many of a step's likeliest tokens are kept."""


@dataclass(eq=False)
class Job:
    """One prompt about some images, and what its explanation is made of."""

    model: Any
    processor: Any
    head: Head
    images: list[Image.Image]
    text: str
    prompt: PromptInputs
    kernel_size: int
    elapsed: dict[str, float] = field(default_factory=dict)
    source: str = "generated"

    def model_inputs(self, answer: Sequence[int] = ()) -> dict[str, Any]:
        """Return what the model takes, on its device and in its dtype; with an answer's tokens behind the prompt's."""
        inputs = dict(self.prompt.inputs)
        if answer:
            tail = torch.tensor([list(answer)])
            shape = inputs["input_ids"].shape
            inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
            for name, value in inputs.items():
                if _is_per_position(name) and isinstance(value, Tensor) and value.shape == shape:
                    # Text, attended to.
                    at = self.prompt.family.answer_values.get(name, int(name.endswith("attention_mask")))
                    inputs[name] = torch.cat([value, torch.full_like(tail, at, dtype=value.dtype)], 1)
        device = input_device(self.model)
        return {name: _moved(value, device, self.model.dtype) for name, value in inputs.items()}

    def maps(self, ids: Sequence[int], hidden: Tensor, compat: Compat = None) -> TokenActivationMaps:
        """Make the maps of an answer (T,) from its states (P + T - 1, C), on the CPU."""
        token_ids = torch.cat([self.prompt.input_ids, torch.tensor(ids)])
        layout = self.prompt.layout
        rows = self.head.plain
        if rows is None and compat == "official":
            rows = self.head.matrix(hidden)  # its argmax over the vocabulary
        if rows is None:
            # Only the rows that occur; ids are their numbers, and told again afterwards.
            needed = torch.cat([token_ids[layout.prompt], token_ids[layout.answer_start :]])
            kept, numbers = torch.unique(needed, return_inverse=True)
            rows = self.head.rows(kept, hidden)
            token_ids = torch.zeros_like(token_ids)
            token_ids[layout.prompt] = numbers[: layout.prompt.numel()]
            token_ids[layout.answer_start :] = numbers[layout.prompt.numel() :]
            maps = self._maps(rows, token_ids, hidden, compat)
            return replace(maps, context_ids=kept[maps.context_ids], target_ids=kept[maps.target_ids])
        return self._maps(rows, token_ids, hidden, compat)

    def _maps(self, rows: Tensor, token_ids: Tensor, hidden: Tensor, compat: Compat) -> TokenActivationMaps:
        return activation_maps(
            hidden.to(rows.device),
            rows,
            token_ids,
            self.prompt.layout,
            compat=compat,
            kernel_size=self.kernel_size,
        ).to("cpu")

    def explanation(self, maps: TokenActivationMaps, writer: Writer, states: KeptStates | None = None) -> Explanation:
        """Put maps and text together."""
        decoder, candidates = writer.whole()
        ids = self.prompt.input_ids[self.prompt.layout.prompt].tolist()
        return Explanation(
            tokens=decoder.pieces,
            token_ids=writer.token_ids,
            text=decoder.text,
            offsets=decoder.offsets,
            maps=maps,
            candidates=candidates,
            images=self.images,
            prompt=self.text,
            context_tokens=token_pieces(self.processor.tokenizer, ids) + decoder.pieces[:-1],
            model=_model_name(self.model),
            elapsed=self.elapsed,
            source=self.source,
            states=states,
        )

    def keep(self, ids: Sequence[int], hidden: Tensor) -> KeptStates:
        """Keep the states (P + T - 1, C) of an answer (T,) for maps of other tokens."""
        token_ids = torch.cat([self.prompt.input_ids, torch.tensor(ids)])
        limit = self.head.size

        def rows(wanted: Tensor) -> Tensor:
            if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < limit:
                raise ValueError(f"token: expected an id from 0 to {limit - 1}, got {int(wanted.max())}")
            return self.head.rows(wanted, hidden[:1])

        return keep(hidden, token_ids, self.prompt.layout, rows, self.processor.tokenizer, self.kernel_size)


def _is_per_position(name: str) -> bool:
    """Whether an input has a value for each position of the sequence."""
    return name.endswith(("attention_mask", "token_type_ids")) and not name.startswith(("pixel", "image", "video"))


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring an input to a device, floating point to the model's dtype; what is no tensor stays as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _model_name(model: Any) -> str:
    """Name a model: its hub id, the last part of its folder, or its class."""
    name = str(getattr(model.config, "name_or_path", "") or "")
    return (Path(name).name if Path(name).exists() else name) or type(model).__name__


class Writer:
    """The answer as it grows: pieces, offsets, and candidates with their texts, decoded when they are asked for."""

    def __init__(self, tokenizer: Any, found: CapturedCandidates) -> None:
        self.token_ids: list[int] = []
        self._decoder = TextDecoder(tokenizer)
        self._candidates: list[list[Candidate]] = []
        self._texts: list[str] = []  # the answer after each token
        self._found = found
        self._lock = threading.Lock()

    def append(self, token_id: int) -> None:
        """Take the answer's next token."""
        self.token_ids.append(token_id)

    def step(self, index: int) -> tuple[str, str, list[Candidate]]:
        """Return a token's piece, the text up to it, and the candidates."""
        self._decode(index + 1)
        return self._decoder.pieces[index], self._texts[index], self._candidates[index]

    def whole(self) -> tuple[TextDecoder, list[list[Candidate]]]:
        """Return the decoded answer and the candidates of all of its steps."""
        self._decode(len(self.token_ids))
        return self._decoder, self._candidates

    def _decode(self, count: int) -> None:
        with self._lock:
            for index in range(len(self._texts), count):
                self._append(self.token_ids[index], self._found[index])

    def _append(self, token_id: int, found: list[tuple[int, float]]) -> None:
        self._candidates.append([Candidate(other, self._decoder.peek(other), p) for other, p in found])
        self._decoder.append(token_id)
        self._texts.append(self._decoder.text)
