"""Model types without a layout of their own: what is assumed, what is refused, and layouts that users register."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from conftest_models import PROMPT, picture
from families import tools

import tam_fast
from tam_fast.maps.grid import Grid
from tam_fast.models import ModelNotSupportedError, register
from tam_fast.models import registry as models_registry
from tam_fast.models.families import FAMILIES, IMPOSSIBLE
from tam_fast.models.inputs import prepare_inputs
from tam_fast.models.layouts import VisualInput
from tam_fast.models.layouts.fixed import crop_box
from tam_fast.models.layouts.generic import generic_grids
from tam_fast.models.layouts.source import visual_runs


def unknown(built, model_type="new_vlm"):
    """A model that says it is of another type."""
    model, processor = copy.deepcopy(built[0]), copy.copy(built[1])
    model.config.model_type = model_type
    # LLaVA's own has none: the family's is written down here.
    processor.chat_template = processor.chat_template or FAMILIES["llava"].chat_template
    return model, processor


def by_hand(ids, pixels=None, sizes=None, **inputs):
    config = SimpleNamespace(
        model_type="new_vlm", image_token_id=7, vision_config=SimpleNamespace(spatial_merge_size=2)
    )
    if pixels is not None:
        inputs["pixel_values"] = torch.zeros(pixels)
    return VisualInput(config, None, torch.tensor(ids), inputs, sizes)


# ------------------------------------------------------------------------------------------------ what is assumed


def test_native_inputs_are_native_grids(qwen):
    model, processor = unknown(qwen)
    sizes = [(170, 60), (60, 120)]
    images = [picture(*size) for size in sizes]
    with pytest.warns(UserWarning, match=r"'new_vlm' has no verified layout: assumed is image_grid_thw.*register"):
        found = prepare_inputs(model, processor, images, PROMPT)
    assert found.layout == prepare_inputs(qwen[0], processor, images, PROMPT).layout
    with pytest.warns(UserWarning, match="new_vlm"):
        assert tam_fast.layout_of(model.config, processor, found.inputs, sizes) == found.layout


def test_equal_square_runs_are_one_raster_each(llava):
    model, processor = unknown(llava)
    images = [picture(90, 60), picture(60, 120)]
    with pytest.warns(UserWarning, match="one row-major raster of 4 x 4 an image, over the whole image"):
        layout = prepare_inputs(model, processor, images, PROMPT).layout
    assert layout.sizes == [(4, 4), (4, 4)]
    assert [grid.box for grid in layout.grids] == [(0.0, 0.0, 1.0, 1.0)] * 2
    assert torch.equal(layout.visual_positions, prepare_inputs(*llava, images, PROMPT).layout.visual_positions)


def test_a_wide_picture_makes_a_wide_raster():
    with pytest.warns(UserWarning, match="2 x 4"):
        (grid,) = generic_grids(by_hand([1, *[7] * 8, 2], (1, 3, 28, 56), [(99, 99)]))
    assert grid.shape == (2, 4)
    # Two images whose tokens stand side by side are told apart by their number alone.
    with pytest.warns(UserWarning, match="2 x 2"):
        grids = generic_grids(by_hand([7] * 8, (2, 3, 28, 28), [(99, 99), (50, 50)]))
    assert [grid.positions.tolist() for grid in grids] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.filterwarnings("ignore:model type 'new_vlm'")
@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_explanations_of_unknown_models(family, request):
    model, processor = unknown(request.getfixturevalue(family))
    e = tam_fast.Explainer(model, processor).explain(picture(90, 60), PROMPT, max_new_tokens=2, min_new_tokens=2)
    assert len(e.tokens) == 2


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "source, numbers",
    [
        (by_hand([7] * 7, (1, 3, 28, 28), [(9, 9)]), "of 28 x 28 pixels, got 7 tokens of id 7 in 1 runs for 1 images"),
        (by_hand([7] * 7 + [1] + [7] * 4, sizes=[(9, 9)] * 2), "got 11 tokens of id 7 in 2 runs for 2 images"),
        (by_hand([7] * 8, (1, 3, 28, 28), [(9, 9)]), "got 8 tokens of id 7 in 1 runs for 1 images"),
        (by_hand([7] * 6, (1, 3, 28, 56), [(9, 9)]), "of 28 x 56 pixels, got 6 tokens"),
        (by_hand([1, 2]), "got 0 tokens of id 7 in 0 runs for 0 images"),
    ],
)
def test_numbers_that_are_no_raster_are_refused(source, numbers):
    with pytest.raises(ModelNotSupportedError, match=f"'new_vlm' need a layout.*{numbers}.*register"):
        generic_grids(source)


def test_native_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ModelNotSupportedError, match=r"expected 4 image tokens.*new_vlm.*got 5"):
        generic_grids(by_hand([7] * 5, image_grid_thw=torch.tensor([[1, 4, 4]])))


# Of each refused type its class, and what in a model of it shows that the reason is true: names of parameters.
REFUSED = {
    "idefics2": ("Idefics2ForConditionalGeneration", r"perceiver_resampler\.latents$"),
    "blip-2": ("Blip2ForConditionalGeneration", r"query_tokens$"),
    "aria": ("AriaForConditionalGeneration", r"projector\.query$"),
    "kosmos-2": ("Kosmos2ForConditionalGeneration", r"latent_query$"),
    "mllama": ("MllamaForConditionalGeneration", r"layers\.\d+\.cross_attn\."),
    "t5gemma2": ("T5Gemma2ForConditionalGeneration", r"^model\.decoder\."),
    "florence2": ("Florence2ForConditionalGeneration", r"decoder\.layers\.\d+\.encoder_attn\."),
    "diffusion_gemma": ("DiffusionGemmaForBlockDiffusion", r"."),
}


@pytest.mark.parametrize(
    "model_type", ["idefics2", *(pytest.param(name, marks=pytest.mark.long) for name in list(REFUSED)[1:])]
)
def test_explainer_refuses_with_a_true_reason(model_type):
    import transformers
    from transformers import GenerationMixin

    name, shows = REFUSED[model_type]
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    config = transformers.CONFIG_MAPPING[model_type]()
    if model_type == "diffusion_gemma":
        # None by default, which its layers do not take.
        for field in ("num_global_key_value_heads", "num_experts", "top_k_experts", "moe_intermediate_size"):
            setattr(config.text_config, field, 2)
    try:
        with torch.device("meta"):
            model = getattr(transformers, name)(config)
    except ValueError as error:
        if tools.version() >= (5, 23):
            raise
        pytest.skip(f"this version makes no {name} of its default configuration: {str(error)[:80]}")
    reason = IMPOSSIBLE[model_type]
    with pytest.raises(ModelNotSupportedError, match=re.escape(reason)) as caught:
        tam_fast.Explainer(model, None)
    assert repr(model_type) in str(caught.value)
    assert any(re.search(shows, parameter) for parameter, _ in model.named_parameters())
    assert ("token by token" in reason) != isinstance(model, GenerationMixin)
    assert ("learnt queries" in reason) == bool(re.search("quer|latent", shows))


# ------------------------------------------------------------------------------------------------ what is registered


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(models_registry, "_registered", {})


def cropped(source):
    """LLaVA's layout, as a user would write it."""
    runs = visual_runs(source, "image", [16] * len(source.sizes()), "4 x 4")
    boxes = [crop_box(source.image_processor, size) for size in source.sizes()]
    return [Grid(run, 4, 4, source=index, box=box) for index, (run, box) in enumerate(zip(runs, boxes, strict=True))]


@pytest.mark.filterwarnings("error:model type")
def test_registered_layouts_are_used(llava, registry):
    model, processor = unknown(llava, "my_vlm")
    processor.chat_template = None
    register("my_vlm", cropped, title="Mine", answer_prefix=" ", chat_template=FAMILIES["llava"].chat_template)
    images, sizes = [picture(112, 56), picture(56, 56)], [(112, 56), (56, 56)]
    explainer = tam_fast.Explainer(model, processor)
    e = explainer.explain(images, PROMPT, max_new_tokens=2, min_new_tokens=2)
    inputs = prepare_inputs(model, processor, images, PROMPT).inputs
    for named in (model, model.config):
        assert tam_fast.layout_of(named, processor, inputs, sizes) == e.maps.layout
    assert [grid.box for grid in e.maps.layout.grids] == [(0.25, 0.0, 0.75, 1.0), (0.0, 0.0, 1.0, 1.0)]
    known = tam_fast.Explainer(*llava).explain(images, PROMPT, max_new_tokens=2, min_new_tokens=2)
    assert torch.equal(e.maps.maps, known.maps.maps)
    status = tam_fast.models.support()["my_vlm"]
    assert (status.status, status.title) == ("generic", "Mine")


def test_a_registered_layout_is_checked(llava, registry):
    model, processor = unknown(llava, "my_vlm")
    register("my_vlm", lambda source: [Grid([10_000], 1, 1)])
    with pytest.raises(ValueError, match="before answer_start"):
        prepare_inputs(model, processor, [picture()], PROMPT)
    for wrong in (5, None, [(0, 1)]):
        register("my_vlm", lambda source, wrong=wrong: wrong)
        with pytest.raises(TypeError, match=r"^layout: expected a sequence of Grid from that of 'my_vlm'"):
            prepare_inputs(model, processor, [picture()], PROMPT)


def test_what_cannot_be_registered(registry):
    with pytest.raises(ValueError, match="qwen2_vl"):
        register("qwen2_vl", cropped)
    with pytest.raises(TypeError, match="model_type"):
        register("", cropped)
    with pytest.raises(TypeError, match="layout"):
        register("my_vlm", "cropped")
