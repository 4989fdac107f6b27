"""The work at hand: one prompt about some images, the answer as it grows, and what its explanation is made of."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tam_fast.explain.targets import Selection
from tam_fast.explanation import Candidate, Explanation
from tam_fast.explanation.frames import Frames
from tam_fast.explanation.grounding import Contrast
from tam_fast.explanation.kept import KeptStates, keep
from tam_fast.maps.answer import TokenActivationMaps, activation_maps
from tam_fast.maps.layout import Layout
from tam_fast.maps.tokens import Compat
from tam_fast.models.capture import CapturedCandidates
from tam_fast.models.chat import Chat
from tam_fast.models.heads import Head
from tam_fast.models.inputs import PromptInputs
from tam_fast.models.text import TextDecoder, token_pieces
from tam_fast.models.wrappers import input_device

__all__ = ["CANDIDATES", "Job", "Work", "Writer", "make_maps"]

CANDIDATES = 3
"""How many of a step's likeliest tokens are kept."""


@dataclass(eq=False)
class Job:
    """One prompt about some images, and what its explanation is made of."""

    model: Any
    processor: Any
    head: Head
    chat: Chat
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

    def prompt_end(self) -> str:
        """Return what stands in the prompt behind the last text that was said, the answer's beginning included."""
        rendered = self.prompt.rendered
        said = [
            stop
            for (_, stop), number in zip(rendered.spans, rendered.messages, strict=True)
            if number < len(self.chat.messages)
        ]
        return rendered.text[max(said, default=0) :]

    def maps(self, ids: Sequence[int], hidden: Tensor, compat: Compat = None) -> TokenActivationMaps:
        """Make the maps of a whole answer (T,) from its states (P + T - 1, C), on the CPU."""
        return make_maps([Work(self, list(ids), hidden, [(0, len(ids))])], compat)[0]

    def explanation(
        self,
        maps: TokenActivationMaps,
        writer: Writer,
        states: KeptStates | None = None,
        selection: Selection | None = None,
        contrast: Contrast | None = None,
    ) -> Explanation:
        """Put maps and text together; of the whole answer if nothing was selected of it."""
        decoder, candidates = writer.whole()
        whole = Selection(list(range(len(decoder.pieces))), decoder.text, decoder.offsets, None)
        chosen = whole if selection is None else selection
        ids = self.prompt.input_ids[self.prompt.layout.prompt].tolist()
        before = decoder.pieces[: chosen.steps[-1]]
        return Explanation(
            tokens=[decoder.pieces[step] for step in chosen.steps],
            token_ids=[writer.token_ids[step] for step in chosen.steps],
            text=chosen.text,
            offsets=chosen.offsets,
            maps=maps,
            candidates=[candidates[step] for step in chosen.steps],
            images=self.chat.images,
            prompt=self.chat.prompt,
            context_tokens=token_pieces(self.processor.tokenizer, ids) + before,
            model=_model_name(self.model),
            elapsed=self.elapsed,
            source=self.source,
            states=states,
            steps=None if chosen.steps == list(range(len(chosen.steps))) else chosen.steps,
            thinking=chosen.thinking,
            contrast=contrast,
            **self._asked(),
        )

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Positions of each text that the user wrote, of those that are the prompt's."""
        return self.prompt.stretches or (tuple(self.prompt.layout.prompt.tolist()),)

    @property
    def words(self) -> Tensor:
        """Positions (n,) of all that the user wrote."""
        return torch.tensor([place for text in self.texts for place in text], dtype=torch.int64)

    def prompt_explanation(
        self, maps: TokenActivationMaps, ids: Sequence[int], found: CapturedCandidates, states: KeptStates | None = None
    ) -> Explanation:
        """Put maps and text of the prompt's own words together; texts of several parts stand on lines of their own."""
        tokens: list[str] = []
        offsets: list[tuple[int, int]] = []
        candidates: list[list[Candidate]] = []
        shown: list[str] = []
        begin = 0
        for text in self.texts:
            writer = Writer(self.processor.tokenizer, found, first=len(tokens))
            for token_id in ids[len(tokens) : len(tokens) + len(text)]:
                writer.append(token_id)
            decoder, some = writer.whole()
            tokens += decoder.pieces
            candidates += some
            offsets += [(begin + start, begin + stop) for start, stop in decoder.offsets]
            shown.append(decoder.text)
            begin += len(decoder.text) + 1
        return Explanation(
            tokens=tokens,
            token_ids=list(ids),
            text="\n".join(shown),
            offsets=offsets,
            maps=maps,
            candidates=candidates,
            images=self.chat.images,
            prompt=self.chat.prompt,
            context_tokens=tokens[:-1],
            model=_model_name(self.model),
            elapsed=self.elapsed,
            source="given",
            states=states,
            **self._asked(),
        )

    def _asked(self) -> dict[str, Any]:
        """Return the videos, and the conversation where it is more than a prompt."""
        return {
            "videos": [Frames(clip.frames, clip.times) for clip in self.chat.videos],
            "messages": None if self.chat.is_plain else [dict(message) for message in self.chat.messages],
        }

    def keep(self, work: Work) -> KeptStates:
        """Keep the states that maps are made of, for maps of other tokens."""
        hidden, token_ids, layout = work.sequence()
        limit = self.head.size

        def rows(wanted: Tensor) -> Tensor:
            if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < limit:
                raise ValueError(f"token: expected an id from 0 to {limit - 1}, got {int(wanted.max())}")
            return self.head.rows(wanted, hidden[:1])

        return keep(hidden, token_ids, layout, rows, self.processor.tokenizer, self.kernel_size)


@dataclass(eq=False)
class Work:
    """What maps are made of.

    Attributes
    ----------
    job : Job
    ids : list of T int
        What was generated, or with `is_prompt` the prompt's words.
    hidden : (P + T - 1, C) Tensor
        Final hidden states; (P, C) with `is_prompt`.
    runs : list of (start, stop)
        The tokens to explain.
    is_prompt : bool
        Whether they are the prompt's words.
    """

    job: Job
    ids: list[int]
    hidden: Tensor
    runs: list[tuple[int, int]]
    is_prompt: bool = False

    def sequence(self) -> tuple[Tensor, Tensor, Layout]:
        """Return states (S, C), ids (S + 1,) and layout as :func:`activation_maps` takes them."""
        layout, ids = self.job.prompt.layout, self.job.prompt.input_ids
        if not self.is_prompt:
            stop = self.runs[-1][1]
            every = torch.cat([ids, torch.tensor(self.ids[:stop])])
            return self.hidden[: every.numel() - 1], every, layout
        # The words, one after the other, behind the cells: each is scored at its own position, as context is.
        words = self.job.words
        places = torch.cat([layout.visual_positions, words])
        cells = layout.visual_positions.numel()
        edges = [0, *layout.offsets[1:]]
        grids = [
            replace(grid, positions=torch.arange(start, stop))
            for grid, start, stop in zip(layout.grids, edges, edges[1:], strict=False)
        ]
        every = torch.cat([ids[layout.visual_positions], ids[words[:1]], ids[words]])
        nothing = torch.empty(0, dtype=torch.int64)
        return self.hidden[places.to(self.hidden.device)], every, Layout(grids, nothing, cells + 1)


def make_maps(works: Sequence[Work], compat: Compat = None) -> list[TokenActivationMaps]:
    """Make the maps of some answers of one model, with one call for all of them; on the CPU.

    Parameters
    ----------
    works : sequence of Work
    compat : None, "official" or "paper"

    Returns
    -------
    list of TokenActivationMaps
        One a work, its runs one after the other.
    """
    head = works[0].job.head
    parts: list[tuple[Tensor, Tensor, Layout, int]] = []
    for work in works:
        hidden, every, layout = work.sequence()
        begin = layout.answer_start
        parts += [(hidden[: begin + stop - 1], every[: begin + stop], layout, start) for start, stop in work.runs]
    rows = head.plain
    if rows is None and compat == "official":
        rows = head.matrix(parts[0][0])  # its argmax over the vocabulary
    kept: Tensor | None = None
    if rows is None:
        # Only the rows that occur; ids are their numbers, and told again afterwards.
        kept = torch.unique(torch.cat([part[1][_read(part)] for part in parts]))
        rows = head.rows(kept, parts[0][0])
        parts = [(part[0], _numbered(part, kept), part[2], part[3]) for part in parts]
    made: list[TokenActivationMaps] = []
    found = activation_maps(
        [part[0].to(rows.device) for part in parts],
        rows,
        [part[1] for part in parts],
        [part[2] for part in parts],
        compat=compat,
        kernel_size=works[0].job.kernel_size,
        first=[part[3] for part in parts],
    )
    for work in works:
        some, found = found[: len(work.runs)], found[len(work.runs) :]
        maps = joined([item.to("cpu") for item in some])
        if kept is not None:
            maps = replace(maps, context_ids=kept[maps.context_ids], target_ids=kept[maps.target_ids])
        made.append(maps)
    return made


def _read(part: tuple[Tensor, Tensor, Layout, int]) -> Tensor:
    """Mark the positions whose tokens are looked up."""
    mask = torch.zeros(part[1].numel(), dtype=torch.bool)
    mask[part[2].prompt] = True
    mask[part[2].answer_start :] = True
    return mask


def _numbered(part: tuple[Tensor, Tensor, Layout, int], kept: Tensor) -> Tensor:
    mask = _read(part)
    numbers = torch.zeros_like(part[1])
    numbers[mask] = torch.searchsorted(kept, part[1][mask])
    return numbers


def joined(parts: Sequence[TokenActivationMaps]) -> TokenActivationMaps:
    """Put maps of several runs of one answer together, in order: the last one's context is that of all."""
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    width = last.relevance.shape[1]
    relevance = [torch.nn.functional.pad(part.relevance, (0, width - part.relevance.shape[1])) for part in parts]
    return TokenActivationMaps(
        maps=torch.cat([part.maps for part in parts]),
        relevance=torch.cat(relevance),
        scale=torch.cat([part.scale for part in parts]),
        flat=torch.cat([part.flat for part in parts]),
        context_ids=last.context_ids,
        target_ids=torch.cat([part.target_ids for part in parts]),
        layout=last.layout,
    )


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

    def __init__(self, tokenizer: Any, found: CapturedCandidates, first: int = 0) -> None:
        self._first = first  # whose candidates the first token has
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
                self._append(self.token_ids[index], self._found[self._first + index])

    def _append(self, token_id: int, found: list[tuple[int, float]]) -> None:
        self._candidates.append([Candidate(other, self._decoder.peek(other), p) for other, p in found])
        self._decoder.append(token_id)
        self._texts.append(self._decoder.text)
