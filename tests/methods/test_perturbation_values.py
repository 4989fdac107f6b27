"""What is absent in embeddings, deeper layers and pixels; several variants at once; nothing left behind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from families import builders
from PIL import Image

from methods import golden
from tam_fast.methods.pixels import MERGED, Pixels, cells_of_pixels
from tam_fast.methods.task import is_pixels
from tam_fast.methods.values import Values
from tam_fast.models import ModelNotSupportedError
from tam_fast.models.inputs import prepare_inputs

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def other_pixels(case):
    """The same case with another picture."""
    inputs = {
        name: value.flip(0) * 0.5 + 0.3 if is_pixels(name, value) else value for name, value in case.inputs.items()
    }
    return dataclasses.replace(case, inputs=inputs)


# Embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    ["qwen2_vl", "gemma3", "llava", "qwen3_5", "qwen3_vl", "granite4_vision", "granite_docling", "phi4_multimodal"],
)
def test_nothing_of_the_image_is_left_where_all_is_absent(family):
    case = golden.whole(family)
    cells = len(case.task().visual)
    kept = torch.tensor([[False] * cells, [True] * cells])
    found = [Values(one.task(), "lime", baseline="zero")(kept) for one in (case, other_pixels(case))]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-4)
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3
    golden.close(found[0][1:], case.task().log_probabilities(case.task().hidden())[None])


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "gemma3", "qwen3_5", "qwen3_vl", "granite4_vision", "molmo2", "hunyuan_vl"]
)
def test_variants_at_once_are_each_alone(family, recwarn):
    case = golden.whole(family)
    one, many = (case.attribute("occlusion", regions=6, batch_size=size).maps for size in (1, 8))
    golden.close(many, one, 2e-5)
    assert one.any()
    assert not [warning for warning in recwarn if "batch_size" in str(warning.message)]


def test_the_vision_tower_runs_once():
    case, ran = golden.whole("llava"), []
    handle = case.model.model.vision_tower.register_forward_hook(lambda *_: ran.append(1))
    try:
        case.attribute("occlusion", regions=4)
        once = sum(ran)
        case.attribute("occlusion", regions=16)
    finally:
        handle.remove()
    assert sum(ran) == 2 * once
    assert once <= 2  # the other finds what the model does to its logits


def test_what_a_model_adds_to_deeper_layers_is_absent_too():
    case = golden.whole("qwen3_vl")
    task = case.task()
    call = task.call
    features = call.options["deepstack_visual_embeds"]
    kept = torch.ones(len(task.visual), dtype=torch.bool)
    kept[2] = False
    embeddings = call.embeddings.clone()
    embeddings[0, task.visual[2]] = embeddings[0, task.visual].mean(dim=0)
    changed = [feature.clone() for feature in features]
    for feature in changed:
        feature[2] = feature.mean(dim=0)
    with torch.no_grad():
        expected = task.log_probabilities(call.with_options(deepstack_visual_embeds=changed)(embeddings))
    golden.close(Values(task, "lime")(kept[None]), expected[None])


def test_models_whose_image_goes_elsewhere_are_refused(monkeypatch):
    case = golden.whole("llava")
    task = case.task()
    task.call = task.call.with_options(more=[torch.ones(16, 3)])
    with pytest.raises(
        ModelNotSupportedError, match=r"'lime' needs the visual embeddings .* gives its decoder more too"
    ):
        Values(task, "lime")
    task.call = case.task().call.with_options(pixel_values=torch.ones(1, 3, 2, 2))
    with pytest.raises(ModelNotSupportedError, match=r"replaced inside it \(pixel_values\)"):
        Values(task, "lime")
    task.call = case.task().call
    task.call.embeddings = torch.zeros_like(task.call.embeddings)
    with pytest.raises(ModelNotSupportedError, match="gives it zeros there"):
        Values(task, "lime")


# Several at once -------------------------------------------------------------------------------------------------


def disturbed(monkeypatch, change):
    """Golden decoder b, whose decoder is disturbed where it runs several variants at once."""
    case = golden.decoder("b")
    forward = case.model.model.forward

    def wrapped(*arguments, **options):
        output = forward(*arguments, **options)
        return change(output) if options["inputs_embeds"].shape[0] > 1 else output

    monkeypatch.setattr(case.model.model, "forward", wrapped)
    return case


def failing(error):
    def change(_output):
        raise error

    return change


def swapping(output):
    output.last_hidden_state = output.last_hidden_state.flip(0)
    return output


@pytest.mark.parametrize(
    ("change", "reason"),
    [(failing(RuntimeError("shapes do not fit")), "RuntimeError: shapes do not fit"), (swapping, "are others than")],
)
def test_decoders_that_cannot_run_several_run_one_by_one(monkeypatch, change, reason):
    expected = golden.decoder("b").attribute("occlusion", batch_size=1).maps
    case = disturbed(monkeypatch, change)
    with pytest.warns(
        UserWarning, match=f"batch_size: Qwen2Model cannot run several variants at once.*{reason}"
    ) as seen:
        golden.close(case.attribute("occlusion", batch_size=5).maps, expected)
    assert len(seen) == 1


def test_less_are_run_at_once_where_memory_does_not_suffice(monkeypatch, recwarn):
    expected, sizes = golden.decoder("b").attribute("occlusion", batch_size=1).maps, []

    def change(output):
        sizes.append(len(output.last_hidden_state))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("too much")
        return output

    case = disturbed(monkeypatch, change)
    golden.close(case.attribute("occlusion", batch_size=8).maps, expected)
    assert sizes[:4] == [8, 4, 2, 2]
    assert max(sizes[2:]) == 2
    assert not recwarn.list


def test_nothing_is_left_after_an_error():
    for case, options in (
        (golden.whole("qwen3_vl"), {}),
        (golden.whole("qwen2_vl"), {"baseline": "mean"}),
    ):
        before = {name: value.clone() for name, value in case.inputs.items() if isinstance(value, torch.Tensor)}
        expected = case.attribute("occlusion", regions=4, **options).maps

        def stop(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            case.attribute("occlusion", regions=4, progress=stop, **options)
        hooks = [
            module
            for module in case.model.modules()
            if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        ]
        assert not hooks
        assert all(parameter.grad is None for parameter in case.model.parameters())
        assert all(torch.equal(case.inputs[name], value) for name, value in before.items())
        assert torch.equal(case.attribute("occlusion", regions=4, **options).maps, expected)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_bfloat16_models_have_nearly_the_same_maps(family):
    case = golden.whole(family)
    half = case.to(torch.bfloat16)
    for baseline in ("mean_embedding", "mean"):
        exact, found = (one.attribute("shap", regions=4, baseline=baseline).maps for one in (case, half))
        assert torch.corrcoef(torch.stack([exact.flatten(), found.flatten()]))[0, 1] > 0.95


# Pixels ----------------------------------------------------------------------------------------------------------


def merged(height, width, patches, values):
    """Cells row by row, each of so many patches that follow each other."""
    return torch.arange(height * width)[:, None, None].expand(-1, patches, values).reshape(-1, values)


def raster(height, width, side):
    return torch.arange(height * width).view(height, width).repeat_interleave(side, 0).repeat_interleave(side, 1)


def test_pixels_of_merged_patches_are_known():
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        case = golden.whole(family, (300, 150))
        height, width = case.layout.sizes[0]
        (found,) = cells_of_pixels(case.task(), "lime").values()
        assert torch.equal(found, merged(height, width, 4, found.shape[1]))
    case = golden.whole("qwen2_vl", images=2)
    (found,) = cells_of_pixels(case.task(), "lime").values()
    assert torch.equal(found, merged(1, sum(map(len, case.layout.grids)), 4, found.shape[1]))


def test_patches_in_rows_are_known():
    case = golden.whole("kimi_k25")
    height, width = case.layout.sizes[0]
    (found,) = cells_of_pixels(case.task(), "lime").values()
    assert torch.equal(found[:, 0, 0, 0], raster(height, width, 2).flatten())
    assert torch.equal(found, found[:, :1, :1, :1].expand_as(found))


def test_pixels_of_pictures_are_known():
    (found,) = cells_of_pixels(golden.whole("llava").task(), "lime").values()
    assert torch.equal(found, raster(4, 4, 14).expand(1, 3, 56, 56))
    (found,) = cells_of_pixels(golden.whole("llava.siglip").task(), "lime").values()
    assert torch.equal(found[0, 0, :56, :56], raster(4, 4, 14))
    assert (found[0, :, 56:] == -1).all()
    assert (found[0, :, :, 56:] == -1).all()
    case = golden.whole("idefics3")
    (found,) = cells_of_pixels(case.task(), "lime").values()
    for number in range(len(case.layout.grids)):
        assert torch.equal(found[0, number, 0], raster(2, 2, 16) + 4 * number)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "idefics3"])
def test_grey_and_black_are_what_the_processor_makes_of_them(family):
    from conftest_models import PROMPT
    from families import build

    case, built = golden.whole(family), build(family)
    processor = built.processor.image_processor
    given = processor.image_mean, processor.image_std
    size = (90, 60)
    for baseline, level in (("grey", 127.5), ("black", 0)):
        flat = np.full((size[1], size[0], 3), int(level), dtype=np.uint8)
        made = prepare_inputs(built.model, built.processor, [Image.fromarray(flat)], PROMPT).inputs["pixel_values"]
        pixels = Pixels(case.task(), "lime", baseline, given)
        found = pixels.inputs(torch.zeros(len(case.task().visual), dtype=torch.bool))["pixel_values"]
        torch.testing.assert_close(found, made, rtol=0, atol=0.01)  # half a level of 8 bits
    kept = torch.ones(len(case.task().visual), dtype=torch.bool)
    assert torch.equal(pixels.inputs(kept)["pixel_values"], case.task().inputs["pixel_values"])


def types():
    for name in sorted(builders()):
        if name in MERGED:
            yield name if name in ("qwen2_vl", "glm4v") else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize("family", list(types()))
def test_places_and_channels_of_merged_patches_are_known(family):
    from conftest_models import PROMPT
    from families import build

    from tam_fast.methods.pixels import _planes

    built, case = build(family), golden.whole(family)
    assert built.model.config.model_type in MERGED
    picture = np.zeros((60, 90, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1], picture[..., 2] = 200, np.linspace(0, 255, 90), np.linspace(0, 255, 60)[:, None]
    value = (
        prepare_inputs(built.model, built.processor, [Image.fromarray(picture)], PROMPT).inputs["pixel_values"].float()
    )
    planes = _planes(case.task(), "pixel_values", value)
    assert planes is not None
    (laid,) = planes.unfold(value)
    red, green, blue = laid[0]
    assert red.std() < 1e-3
    assert green.std(dim=0).max() < 1e-3
    assert (green.mean(dim=0).diff() > -1e-3).all()
    assert blue.std(dim=1).max() < 1e-3
    assert (blue.mean(dim=1).diff() > -1e-3).all()
    assert torch.equal(planes.fold([laid]), value)


def test_the_mean_is_of_each_image():
    case = golden.whole("qwen2_vl", images=2)
    kept = torch.zeros(len(case.task().visual), dtype=torch.bool)
    found = Pixels(case.task(), "lime", "mean").inputs(kept)["pixel_values"].unflatten(1, (3, -1))
    given = case.task().inputs["pixel_values"].unflatten(1, (3, -1))
    first = 4 * len(case.layout.grids[0])
    for part in (slice(first), slice(first, None)):
        torch.testing.assert_close(found[part], given[part].mean(dim=(0, 2))[None, :, None].expand_as(found[part]))


def test_blurred_pixels_are_a_gaussians():
    from scipy.ndimage import gaussian_filter

    case = golden.whole("llava")
    kept = torch.zeros(16, dtype=torch.bool)
    found = Pixels(case.task(), "lime", "blur").inputs(kept)["pixel_values"][0]
    for one, picture in zip(found, case.task().inputs["pixel_values"][0], strict=True):
        expected = gaussian_filter(picture.double().numpy(), 14, mode="mirror", truncate=3)
        np.testing.assert_allclose(one, expected, atol=1e-5)
    case = golden.whole("qwen2_vl", (300, 150))
    pixels = Pixels(case.task(), "lime", "blur")
    height, width = case.layout.sizes[0]
    found = pixels.inputs(torch.zeros(height * width, dtype=torch.bool))["pixel_values"]
    given = case.task().inputs["pixel_values"]

    def laid(value):  # by hand: cell, patch in it, channel, frame, pixel
        value = value.view(height, width, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, 0]
        return value.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * 28, width * 28)

    for one, picture in zip(laid(found), laid(given), strict=True):
        np.testing.assert_allclose(
            one, gaussian_filter(picture.double().numpy(), 28, mode="mirror", truncate=3), atol=1e-5
        )


def test_the_maps_are_those_of_pixels_changed_by_hand():
    case = golden.whole("llava")
    pixels, start = case.inputs["pixel_values"], case.layout.answer_start
    grey = (0.5 - torch.tensor(MEAN)) / torch.tensor(SPREAD)

    def value(given):
        with torch.no_grad():
            logits = case.model(**{**case.inputs, "pixel_values": given}, use_cache=False).logits[0, start - 1 :]
        return logits.log_softmax(dim=1).gather(1, case.token_ids[start:, None])[:, 0]

    expected = []
    for row in range(4):
        for column in range(4):
            changed = pixels.clone()
            changed[0, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = grey[:, None, None]
            expected.append(value(pixels) - value(changed))
    found = case.attribute("occlusion", baseline="grey", normalization=(MEAN, SPREAD)).maps
    golden.close(found, torch.stack(expected, dim=1), 2e-5)


def test_smooth_masks_mix_pixels():
    case = golden.whole("llava")
    pixels = Pixels(case.task(), "rise", "mean")
    mixed = pixels.inputs(torch.full((16,), 0.25))["pixel_values"]
    absent = pixels.inputs(torch.zeros(16, dtype=torch.bool))["pixel_values"]
    torch.testing.assert_close(mixed, 0.25 * case.task().inputs["pixel_values"] + 0.75 * absent)
    assert (case.attribute("rise", baseline="mean", samples=4).maps > 0).all()


@pytest.mark.parametrize(
    ("family", "baseline", "reason"),
    [
        ("got_ocr2", "mean", "needs pixels that one cell each sees, and several see those of pixel_values"),
        ("llava_onevision", "mean", "needs pixels that one cell each sees"),
        ("deepseek_vl_hybrid", "mean", "several see those of high_res_pixel_values"),
        ("chameleon", "mean", "needs visual embeddings that depend on pixel_values, found none"),
        ("lfm2_vl", "blur", "needs pixels whose places and channels are known for baseline='blur'"),
        ("kimi_k25", "blur", "needs pixels whose places and channels are known for baseline='blur'"),
        ("minicpmv4_6", "blur", "needs pixels whose places and channels are known for baseline='blur'"),
    ],
)
def test_pixels_that_cannot_be_taken_away_are_refused(family, baseline, reason):
    with pytest.raises(ModelNotSupportedError, match=f"method: 'occlusion' .*{reason}"):
        golden.whole(family).attribute("occlusion", baseline=baseline)


def test_decoders_without_pixels_are_refused_before_they_run(monkeypatch):
    case = golden.decoder("b")
    monkeypatch.setattr(case.model.model, "forward", None)
    with pytest.raises(
        ModelNotSupportedError, match=r"'occlusion' with baseline='grey' needs a model that is given pix"
    ):
        case.attribute("occlusion", baseline="grey")
    whole = golden.whole("llava")
    without = dataclasses.replace(whole, inputs={"inputs_embeds": whole.task().call.embeddings})
    with pytest.raises(ValueError, match="baseline: expected pixels among the inputs to replace, got inputs_embeds"):
        without.attribute("occlusion", baseline="mean")


@pytest.mark.parametrize(
    ("normalization", "message"),
    [
        (None, r"normalization: expected \(mean, standard deviation\) of pixels.* for baseline='grey', got None"),
        ((0.5, 0), "normalization: expected numbers or three each, deviations above 0"),
        (((1, 2), 1), "normalization: expected numbers or three each"),
    ],
)
def test_normalizations_are_checked(normalization, message):
    with pytest.raises(ValueError, match=message):
        golden.whole("llava").attribute("occlusion", baseline="grey", normalization=normalization)
    with pytest.raises(ValueError, match="normalization: expected None with baseline='mean'"):
        golden.whole("llava").attribute("occlusion", baseline="mean", normalization=(0.5, 0.5))
