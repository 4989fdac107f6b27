"""Explanations of a family's tiny model against the oracle: generated, streamed and given answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import torch
from conftest_models import PROMPT, picture
from families import Built

import tam_fast
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts import visual_mask
from tam_fast.models.layouts.source import token_id

_TOLERANCE = 2e-4  # float32 models: products of one row and of many rows round differently


def classifier(model: Any) -> torch.nn.Module:
    """A model's lm_head, which may be its language model's."""
    return model.get_output_embeddings() or model.get_decoder().get_output_embeddings()


def head_states(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier reads at every position (S, C): its own input, which capture never looks at.

    And the logits (S, V) that the model returns.
    """
    seen: list[torch.Tensor] = []

    def look(_module: Any, args: Any) -> None:
        seen.append(args[0].detach())

    handle = classifier(model).register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            logits = model(**inputs, logits_to_keep=0).logits
    finally:
        handle.remove()
    return seen[-1].reshape(-1, seen[-1].shape[-1]), logits[0]


def check_explanations(built: Built, sizes: list[tuple[int, int]], tokens: int = 3) -> None:
    """Assert that explain, stream and a given answer agree with each other and with the oracle on the head's states."""
    model, processor = built.model, built.processor
    images = [picture(*size, seed=index) for index, size in enumerate(sizes)]
    prompt = prepare_inputs(model, processor, images, PROMPT)
    layout = prompt.layout
    for named in (model, model.config):
        assert tam_fast.layout_of(named, processor, prompt.inputs, sizes) == layout
    shown = processor.tokenizer.decode(prompt.input_ids[layout.prompt])
    assert shown.strip() == PROMPT, shown
    assert not visual_mask(model.config, prompt.input_ids)[layout.prompt].any()
    explainer = tam_fast.Explainer(model, processor)
    # A model with random weights might say the image's own token, which cannot be given back to it.
    unsaid = [number for kind in ("image", "video") if (number := token_id(model.config, kind)) is not None]
    unsaid = [number for number in unsaid if number < explainer._head().size]
    greedy = {"max_new_tokens": tokens, "min_new_tokens": tokens, "suppress_tokens": unsaid or None}
    e = explainer.explain(images, PROMPT, **greedy)
    assert e.source == "generated"
    assert e.maps.layout == layout
    steps = list(explainer.stream(images, PROMPT, **greedy))
    assert [step.token_id for step in steps] == e.token_ids
    given = explainer.explain(images, PROMPT, answer=e.token_ids)
    assert given.source == "given"
    from tam_fast.explain.job import Job
    from tam_fast.models.chat import read_chat

    job = Job(model, processor, explainer._head(), read_chat(images, PROMPT), prompt, 3)
    states, logits = head_states(model, job.model_inputs(e.token_ids[:-1]))
    ids = torch.cat([prompt.input_ids, torch.tensor(e.token_ids)])
    expected = oracle.activation_maps(
        states.double().numpy(),
        classifier(model).weight.detach().double().numpy(),
        ids.numpy(),
        layout.visual_positions.numpy(),
        layout.sizes,
        layout.prompt.numpy(),
        layout.answer_start,
    ).maps
    streamed = torch.stack([step.map for step in steps])
    for name, maps in (("generated", e.maps.maps), ("streamed", streamed), ("given", given.maps.maps)):
        np.testing.assert_allclose(maps.numpy(), expected, atol=_TOLERANCE, err_msg=name)
    probabilities = logits[layout.answer_start - 1 :].double().softmax(-1)
    for name, found in (("generated", e), ("given", given)):
        for row, step in zip(probabilities, found.candidates, strict=True):
            likeliest = row.topk(len(step)).values.tolist()
            told = [candidate.probability for candidate in step]
            np.testing.assert_allclose(told, likeliest, atol=_TOLERANCE, err_msg=name)
            np.testing.assert_allclose(told, [float(row[candidate.token_id]) for candidate in step], atol=_TOLERANCE)
