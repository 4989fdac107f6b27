"""What is kept while a model answers: rows of final states, and nothing else of any layer."""

from __future__ import annotations

import weakref

import pytest
import torch
from conftest_models import PROMPT, picture, qwen_model, qwen_processor
from explainers import GREEDY, STEPS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tam_fast import Explainer, activation_maps


class Watch(TorchDispatchMode):
    """See every tensor that an operation makes: shapes, and bytes that are alive together."""

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.live = {}
        self.peak = 0
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        made = list(output) if isinstance(output, (list, tuple)) else [output]
        inputs = {value.untyped_storage()._cdata for value in args if isinstance(value, torch.Tensor)}
        for value in made:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
                if storage._cdata not in inputs:
                    self.shapes.append((str(function), tuple(value.shape), value.dtype))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        total = sum(size for _, size in self.live.values())
        self.peak = max(self.peak, total)
        if str(function).startswith("aten.argmax"):
            self.steps.append(total)  # greedy generation takes its next token
        return output

    def logits(self, vocabulary):
        """Rows of the largest tensor with one column a word."""
        rows = [
            torch.Size(shape).numel() // vocabulary
            for _, shape, dtype in self.shapes
            if shape and shape[-1] == vocabulary and dtype.is_floating_point
        ]
        return max(rows, default=0)


@pytest.fixture(scope="module")
def watched(qwen):
    """An image large enough for prompt, vocabulary and channels to be told apart by their sizes."""
    image = picture(420, 420)
    positions = qwen._prepare(image, PROMPT, 3).prompt.layout.answer_start
    assert positions not in (len(qwen.processor.tokenizer), 32, 48)
    return image, positions


def test_no_logits_but_those_of_generate(qwen, watched):
    image, positions = watched
    vocabulary = len(qwen.processor.tokenizer)
    with Watch() as watch:
        e = qwen.explain(image, PROMPT, **GREEDY)
    assert watch.logits(vocabulary) <= len(e) < positions, "those of a few steps, for their candidates"
    with Watch() as watch:
        qwen.explain(image, PROMPT, answer=e.token_ids)
    assert watch.logits(vocabulary) == len(e), "those of the answer, for its candidates"
    with Watch() as watch:
        qwen.explain(image, PROMPT, answer=e.token_ids * 10)
    assert watch.logits(vocabulary) == 32 < 10 * len(e), "a few at a time"
    assert positions > 200


def test_no_attention_weights_are_asked_for(qwen, watched, monkeypatch):
    image, positions = watched
    asked = []
    for module in qwen.model.modules():
        if type(module).__name__ in ("Qwen2VLTextModel", "Qwen2VLAttention", "Qwen2VLDecoderLayer"):
            forward = module.forward

            def record(*args, forward=forward, **kwargs):
                asked.append((kwargs.get("output_attentions"), kwargs.get("output_hidden_states")))
                return forward(*args, **kwargs)

            monkeypatch.setattr(module, "forward", record)
    with Watch() as watch:
        e = qwen.explain(image, PROMPT, **GREEDY)
    with Watch() as forced:
        qwen.explain(image, PROMPT, answer=e.token_ids)
    assert asked
    assert {value for pair in asked for value in pair} <= {None, False}
    for shapes, length in ((watch.shapes, positions), (forced.shapes, positions + len(e) - 1)):
        square = [
            entry for entry in shapes if len(entry[1]) >= 3 and entry[1][-2:] == (length, length) and entry[1][-3] > 1
        ]
        assert not square, "a weight for each head and pair of positions"


def layer_states(model):
    """Record the states that every layer of the decoder returns, weakly."""
    made = []

    def hook(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        made.append((state.shape[1], weakref.ref(state), StorageWeakRef(state.untyped_storage())))

    return made, [layer.register_forward_hook(hook) for layer in model.model.language_model.layers]


@pytest.mark.parametrize("answer", [None, "A dog and a cat sit on the red sofa."])
def test_no_other_layers_states_are_kept(qwen, watched, monkeypatch, answer):
    image, positions = watched
    made, handles = layer_states(qwen.model)
    alive = []

    def look(states, *args, **kwargs):
        (hidden,) = states
        alive.extend(length for length, tensor, storage in made if tensor() is not None or not storage.expired())
        assert hidden.untyped_storage().nbytes() <= (hidden.shape[0] + 1) * hidden.shape[1] * 4
        return activation_maps(states, *args, **kwargs)

    monkeypatch.setattr("tam_fast.explain.job.activation_maps", look)
    try:
        qwen.explain(image, PROMPT, answer=answer, **({} if answer else GREEDY))
    finally:
        for handle in handles:
            handle.remove()
    assert len(made) >= 2
    assert max(length for length, *_ in made) >= positions
    assert alive == []


@pytest.mark.parametrize("way", ["explain", "stream"])
def test_peak_memory_against_generate(way, monkeypatch):
    """Beyond the peak of processor and generate: rows of final states, and nothing that grows with the layers."""
    processor = qwen_processor()
    image = picture(700, 560)
    excess = {}
    for layers in (2, 6):
        explainer = Explainer(qwen_model(processor, layers=layers), processor)
        with torch.no_grad(), Watch() as plain:
            job = explainer._prepare(image, PROMPT, 3)
            output = explainer.model.generate(**job.model_inputs(), **GREEDY)
        del job
        with Watch() as watch:
            if way == "explain":
                explainer.explain(image, PROMPT, **GREEDY)
            else:
                stream = explainer.stream(image, PROMPT, **GREEDY)
                # A watch sees one thread: this one goes on into the thread that generates.
                monkeypatch.setattr(
                    "tam_fast.explain.threads.Ambience.enter", lambda _, stack: stack.enter_context(watch)
                )
                for _ in stream:
                    pass
        states = output.shape[1] * 32 * 4
        assert watch.peak - plain.peak <= states
        assert len(watch.steps) == len(plain.steps) == STEPS
        excess[layers] = [more - less for more, less in zip(watch.steps, plain.steps, strict=True)]
        # Three candidates a step, the logits of a few steps, and some scalars.
        others = 4096 + 2**14
        assert max(excess[layers]) <= states + others, "more than the rows of final states is alive while generating"
        assert min(excess[layers]) >= states // 2, "the watch saw nothing"
    assert abs(max(excess[6]) - max(excess[2])) < 4096, "another layer's states would show here"
