"""What published programs gave for two random text decoders, and tiny whole models to be asked alike.

::

    case = golden.decoder("a")                  # model, inputs, layout, token_ids
    maps = case.attribute("grad_cam", layer=0)  # AttributionMaps
    golden.close(maps.maps, case["grad_cam"][:, 0])
    golden.whole("qwen2_vl").attribute("cam")   # a tiny model of images and text
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import data_folder

from tam_fast.maps.layout import Grid, Layout
from tam_fast.methods import AttributionMaps, attribute
from tam_fast.methods.task import Task

NAMES = ("a", "b")
ANSWER = (20, 7, 33, 20)  # of whole models; a token that comes again


@dataclass(frozen=True)
class Case:
    """One answer of one model: what :func:`tam_fast.methods.attribute` takes.

    Attributes
    ----------
    arrays : mapping of str to (...) ndarray
        What published programs gave; empty where there are none. ``case["cam"]`` is one of them, over all cells:
        rasters (T, ..., h, w) are (T, ..., N).
    """

    model: Any
    inputs: Mapping[str, torch.Tensor]
    layout: Layout
    token_ids: torch.Tensor
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> torch.Tensor:
        array = self.arrays[name]
        shape = self.layout.sizes[0] if self.layout.grids else ()
        if array.shape[-2:] == shape:
            array = array.reshape(*array.shape[:-2], -1)
        return torch.from_numpy(np.array(array))

    def task(self) -> Task:
        return Task(self.model, self.inputs, self.layout, self.token_ids)

    def attribute(self, method: str, **options: Any) -> AttributionMaps:
        return attribute(self.model, self.inputs, self.layout, self.token_ids, method, **options)

    def to(self, dtype: torch.dtype) -> Case:
        """Make the same case of a copy of the model in another dtype."""
        return Case(copy.deepcopy(self.model).to(dtype), self.inputs, self.layout, self.token_ids, self.arrays)


def folder() -> Path:
    """Find the golden data, or skip the test."""
    found = data_folder() / "golden_methods"
    if not found.is_dir():
        pytest.skip(f"needs what published methods give, and there is no {found} (set TAM_FAST_TEST_DATA)")
    return found


@functools.cache
def decoder(name: str, attention: str = "sdpa") -> Case:
    """Load one of the golden decoders (``"a"``, ``"b"``) and all arrays about it; once a process."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    where = folder()
    said = json.loads((where / f"decoder_{name}.json").read_text())
    with np.load(where / f"decoder_{name}.npz") as archive:
        given = dict(archive)
    with np.load(where / f"methods_decoder_{name}.npz") as archive:
        arrays = {**archive, "logits": given["logits"]}
    model = Qwen2ForCausalLM(Qwen2Config(**said["config"], attn_implementation=attention)).eval()
    prefix = said["weights_prefix"]
    weights = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    found = model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=False)
    assert not found.unexpected_keys
    assert all(key.endswith(".bias") for key in found.missing_keys), found.missing_keys
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key in found.missing_keys:
                value.zero_()
    layout = Layout(
        [Grid(given["visual_positions"], *map(int, given["grid"]))],
        given["prompt_positions"],
        int(given["answer_start"]),
    )
    inputs = {"inputs_embeds": torch.from_numpy(given["inputs_embeds"])[None]}
    return Case(model, inputs, layout, torch.from_numpy(given["token_ids"]), arrays)


@functools.cache
def whole(family: str, size: tuple[int, int] = (90, 60), images: int = 1, attention: str | None = None) -> Case:
    """Build a family's tiny model (see ``families``) with an answer about pictures; once a process."""
    from conftest_models import PROMPT, picture
    from families import build

    from tam_fast.models.inputs import prepare_inputs

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # builders draw matrices by a seed, and leave vectors (gates, class tokens) as they come
        built = build(family)
    model = built.model
    if attention is not None:
        model = copied(model)
        model.set_attn_implementation(attention)
    pictures = [picture(*size, seed=index) for index in range(images)]
    prompt = prepare_inputs(model, built.processor, pictures, PROMPT)
    tail = torch.tensor([ANSWER[:-1]])
    inputs = dict(prompt.inputs)
    shape = inputs["input_ids"].shape
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            at = prompt.family.answer_values.get(name, int(name.endswith("attention_mask")))
            more = tail if name == "input_ids" else torch.full_like(tail, at, dtype=value.dtype)
            inputs[name] = torch.cat([value, more], dim=1)
    return Case(model, inputs, prompt.layout, torch.cat([prompt.input_ids, torch.tensor(ANSWER)]))


def copied(model: Any) -> Any:
    """Copy a model without the hooks that transformers leaves after a first pass, which do not work on a copy."""
    made = copy.deepcopy(model)
    for module in made.modules():
        for number, hook in list(module._forward_hooks.items()):
            if "output_capturing" in str(getattr(hook, "__module__", "")):
                del module._forward_hooks[number]
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return made


def close(found: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    """Assert that maps (T, ...) are those of the data, to a part of each map's largest value.

    Maps that are zero in the data must be zero to `tolerance` itself.
    """
    expected = torch.as_tensor(expected, dtype=torch.float64)
    found = found.detach().to(torch.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.isfinite().all()
    largest = expected.abs().flatten(1).amax(dim=1)
    difference = (found - expected).abs().flatten(1).amax(dim=1)
    allowed = tolerance * torch.where(largest > 0, largest, 1.0)
    assert (difference <= allowed).all(), (difference / allowed * tolerance).tolist()
