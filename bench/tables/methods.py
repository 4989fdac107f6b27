"""What every method costs: time a token and peak memory of an answer, beside one plain forward pass of the model.

Three cases: the embedded model on a sample scene, and a Qwen2-VL of random weights with 2B's width but 4 layers and few
words, at 345 and at 1,980 visual tokens. Pictures of noise, a given answer; float32, SDPA.

Each method is run once and its maps looked at: they must be of the right shape, finite, and not all 0 (their numbers
are the tests' business). In that run every allocation of torch is recorded: the peak is what it held at most beyond
what was there before, to the byte, whatever the system's allocator does. Then a plain forward pass and the method take
turns, method by method, and ratios are taken within a turn. Of what takes long the run that is looked at is the only
one.

Time is the processor's, on one thread: what else the machine does meanwhile does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.measure import WrongResultError, quantiles
from bench.pages import METHOD_BASES
from bench.records import Record
from bench.tables import Options

FORWARD, BACKWARD, MATRICES = METHOD_BASES
TIME, MEMORY, LEFT_OUT = "ms a token", "MiB", "left out"

HIDDEN, LAYERS, HEADS, GROUPS, INTERMEDIATE, VOCABULARY = 1536, 4, 12, 2, 8960, 4096
GRIDS = {"small": (15, 23), "large": (44, 45)}  # 345 and 1,980 visual tokens
TOKENS = 2  # of one alone, feature surgery would leave nothing
PROMPT = 12  # positions of text before the answer

_CLOSE = ("attention", "rollout")
"""Compared with few forwards: they take turns even if they are long."""

_FLOW = "maximum flows are for test sizes: it refuses more"
_FEWER: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 2},
    "smooth_grad": {"copies": 2},
    "occlusion": {"regions": 8},
    "lime": {"samples": 8},
    "shap": {"samples": 8},
    "rise": {"samples": 8},
    "region_search": {"regions": 8, "steps": 2, "scope": 2, "together": True},
}
"""What is measured less of than the defaults say: the cost is in proportion, and the table says it."""
_OUT: dict[str, dict[str, str]] = {
    "embedded": {"attention_flow": _FLOW},
    "small": {"attention_flow": _FLOW},
    "large": {
        "attention_flow": _FLOW,
        **dict.fromkeys(_FEWER, "they are many passes, and take as many times one as at 345 visual tokens"),
    },
}


@dataclass
class Case:
    """A model, an answer, and what runs on them.

    Attributes
    ----------
    part : str
    title : str
    model : transformers.PreTrainedModel
    inputs : dict
        Over prompt and answer.
    layout : tam_fast.Layout
    token_ids : (S + 1,) int64
    """

    part: str
    title: str
    model: Any
    inputs: dict[str, Any]
    layout: Any
    token_ids: Tensor

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.token_ids.numel()) - int(self.layout.answer_start)

    def forward(self) -> None:
        """Run the model once, with the logits of the answer alone."""
        with torch.no_grad():
            self.model(**self.inputs, use_cache=False, logits_to_keep=self.tokens)

    def backward(self) -> Tensor:
        """Gradients of each token's logit at the visual embeddings, as anyone would take them; (T, N)."""
        from tam_fast.methods.task import Task

        task = Task(self.model, self.inputs, self.layout, self.token_ids)
        embeddings = task.call.embeddings.detach().requires_grad_()
        logits = task.logits(task.call(embeddings))
        found = [
            torch.autograd.grad(logit, embeddings, retain_graph=t + 1 < len(task))[0][0, self.layout.visual_positions]
            for t, logit in enumerate(logits)
        ]
        return torch.stack([gradient.norm(dim=1) for gradient in found])

    def method(self, name: str, options: Mapping[str, Any]) -> Tensor:
        """Raw maps of a method, (T, N)."""
        from tam_fast.methods import attribute

        return attribute(self.model, self.inputs, self.layout, self.token_ids, name, **options).maps

    def check(self, maps: Tensor) -> None:
        """Refuse maps of another shape, that are not finite, or all 0."""
        expected = (self.tokens, int(self.layout.visual_positions.numel()))
        if tuple(maps.shape) != expected:
            raise WrongResultError(f"maps: expected (T, N) = {expected}, got {tuple(maps.shape)}")
        if not bool(maps.isfinite().all()) or not bool(maps.any()):
            raise WrongResultError("maps: expected finite values, not all of them 0")


def embedded() -> Case:
    """The embedded model, on the first sample scene and its own answer."""
    from PIL import Image

    import tam_fast
    from tam_fast.models.inputs import prepare_inputs

    model, processor = tam_fast.load_demo()
    image = Image.open(tam_fast.demo.sample_scenes()[0]).convert("RGB")
    ids = tam_fast.Explainer(model, processor).explain(image).token_ids
    prompt = prepare_inputs(model, processor, [image], "Describe this image.")
    tail = torch.tensor([ids])
    inputs = {
        # Of text, attended to.
        name: torch.cat([value, torch.full_like(tail[:, :-1], int(name == "attention_mask"))], dim=1)
        if value.shape == prompt.inputs["input_ids"].shape
        else value
        for name, value in prompt.inputs.items()
    }
    inputs["input_ids"] = torch.cat([prompt.inputs["input_ids"], tail[:, :-1]], dim=1)
    cells = prompt.layout.visual_positions.numel()
    title = f"embedded model, {cells} visual tokens, T = {len(ids)}"
    every = torch.cat([prompt.inputs["input_ids"][0], tail[0]])
    return Case("embedded", title, model, inputs, prompt.layout, every)


def random_weights(part: str, quick: bool = False) -> Case:
    """A Qwen2-VL of random weights on a picture of noise."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from tam_fast.maps.grid import Grid
    from tam_fast.maps.layout import Layout

    height, width = (4, 5) if quick else GRIDS[part]
    hidden, intermediate, layers, count = (256, 512, 2, 2) if quick else (HIDDEN, INTERMEDIATE, LAYERS, TOKENS)
    heads = hidden // 128
    words = VOCABULARY - 16
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": min(GROUPS, heads),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "bos_token_id": words,
            "eos_token_id": words + 1,
            "pad_token_id": words + 1,
        },
        vision_config={"depth": 2, "embed_dim": 320, "num_heads": 4, "hidden_size": hidden},
        vision_start_token_id=words + 2,
        vision_end_token_id=words + 3,
        image_token_id=words + 4,
        video_token_id=words + 5,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    cells = height * width
    text = torch.randint(0, words, (PROMPT + count,))
    head, tail = text[: PROMPT // 2], text[PROMPT // 2 :]
    start, end, image = words + 2, words + 3, words + 4
    ids = torch.cat([head, torch.tensor([start] + [image] * cells + [end]), tail])
    first = head.numel() + 1
    layout = Layout(
        [Grid(range(first, first + cells), height, width)],
        torch.arange(first + cells + 1, ids.numel() - count),
        ids.numel() - count,
    )
    inputs = {
        "input_ids": ids[None, :-1],
        "attention_mask": torch.ones_like(ids[None, :-1]),
        "mm_token_type_ids": (ids[None, :-1] == image).int(),
        "pixel_values": torch.randn(4 * cells, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]]),
    }
    return Case(part, f"random weights, {cells:,} visual tokens, T = {count}", model, inputs, layout, ids)


def peak_of(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Run something; return what it gives, the peak of what torch allocated for it in MiB, and the seconds it took."""
    from torch.profiler import ProfilerActivity, profile

    began = time.process_time()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made = run()
        seconds = time.process_time() - began
    events = seen.profiler.kineto_results.events()
    sizes = sorted(((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"), key=_first)
    held = peak = 0
    for _, size in sizes:
        held += size
        peak = max(peak, held)
    return made, peak / 2**20, seconds


def _first(pair: tuple[int, int]) -> int:
    return pair[0]


def _seconds(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def measure(part: str, threads: int, options: Options) -> list[Record]:
    """Milliseconds a token, and MiB of an answer; ratios are to a plain forward pass over prompt and answer."""
    from tam_fast.methods import METHODS

    quick = bool(options.get("quick"))
    case = embedded() if part == "embedded" else random_weights(part, quick)
    case.forward()
    _, plain, _ = peak_of(case.forward)
    records: list[Record] = []

    def add(name: str, run: Callable[[], Any], work: int, look: bool = True, note: str = "") -> None:
        base, taken = [_seconds(case.forward)], []
        made, peak, took = peak_of(run)
        if look:
            try:
                case.check(made)
            except WrongResultError as error:
                raise WrongResultError(f"{case.title}: {name}: {error}") from error
        del made
        turns = 1 if quick or (took > 5.0 and name not in _CLOSE) else max(3, min(21, int(4.0 / took)))
        if turns == 1:
            taken.append(took)
        else:
            base.clear()
        for turn in range(turns if turns > 1 else 0):
            for what, into in ((case.forward, base), (run, taken))[:: 1 if turn % 2 else -1]:
                into.append(_seconds(what))
        times = [1e3 * value / work for value in quantiles(taken)]
        ratios = quantiles([value / forward for value, forward in zip(taken, base, strict=True)])
        records.append(Record(case.title, name, TIME, threads, *times, *ratios, len(taken), note=note))
        records.append(Record(case.title, name, MEMORY, threads, None, peak, None, None, peak / plain, None, note=note))

    add(FORWARD, case.forward, case.tokens, look=False)
    add(BACKWARD, case.backward, case.tokens)
    config = case.model.config.get_text_config()
    size = 4 * config.num_hidden_layers * config.num_attention_heads * (case.token_ids.numel() - 1) ** 2 / 2**20
    records.append(Record(case.title, MATRICES, MEMORY, threads, None, size, None, None, size / plain, None))
    for name in METHODS:
        if name in _OUT[part]:
            records.append(Record(case.title, name, LEFT_OUT, threads, None, 0.0, None, note=_OUT[part][name]))
            continue
        given = _FEWER.get(name, {})
        shown = ", ".join(f"{key}={value}" for key, value in given.items())

        def run(name: str = name, given: Mapping[str, Any] = given) -> Tensor:
            return case.method(name, given)

        add(name, run, case.tokens, note=shown)
    return records
