"""Methods of final states and classifier rows, and CLIP Surgery, against published programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods import golden
from tam_fast.methods.surgery import without_shared
from tam_fast.models import ModelNotSupportedError


def test_cam_is_the_papers_grad_cam(decoder):
    golden.close(decoder.attribute("cam").maps, decoder["cam"])
    assert torch.equal(decoder.attribute("grad_cam").maps, decoder.attribute("cam").maps)


@pytest.mark.parametrize(
    ("image", "classes", "expected"),
    [
        ("image_features", "text_features", "similarity"),
        ("decoder_features", "decoder_classes", "decoder_similarity"),
    ],
)
def test_feature_surgery_is_the_published_function(image, classes, expected):
    with np.load(golden.folder() / "clip_surgery.npz") as archive:
        features, rows, published = (torch.from_numpy(archive[name]).double() for name in (image, classes, expected))
    made = without_shared(rows @ features[0].T, rows @ features[0, 0])
    golden.close(made, published[0].T)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("cls", ["token", "mean"])
def test_feature_surgery_of_a_decoder_is_the_formula(decoder, cls, normalize):
    states = decoder["hidden"].double()
    task = decoder.task()
    rows = decoder.model.lm_head.weight.detach().double()
    if normalize:
        rows = rows / rows.norm(dim=1, keepdim=True)
    at = states[task.visual]
    wholes = states[task.rows] if cls == "token" else at.mean(dim=0, keepdim=True).expand(len(task), -1)
    if normalize:
        at = at / at.norm(dim=1, keepdim=True)
        wholes = wholes / wholes.norm(dim=1, keepdim=True)
    classes = sorted(set(task.targets.tolist()))
    expected = []
    for whole, target in zip(wholes, task.targets.tolist(), strict=True):
        weights = torch.stack([(2 * whole @ rows[token]).exp() for token in classes])
        weights = weights / weights.mean()
        each = torch.stack([q * (at @ rows[token]) for q, token in zip(weights, classes, strict=True)])
        expected.append(each[classes.index(target)] - each.mean(dim=0))
    golden.close(decoder.attribute("feature_surgery", cls=cls, normalize=normalize).maps, torch.stack(expected), 2e-5)


def test_an_answer_of_one_token_shares_all():
    case = golden.decoder("b")
    short = case.layout.answer_start
    one = golden.Case(
        case.model, {"inputs_embeds": case.inputs["inputs_embeds"][:, :short]}, case.layout, case.token_ids[: short + 1]
    )
    with pytest.warns(UserWarning, match="this answer has one token"):
        assert not one.attribute("feature_surgery").maps.any()
    with pytest.raises(ValueError, match='cls: expected "token" or "mean"'):
        one.attribute("feature_surgery", cls="image")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_archi_surgery_is_the_second_path(name, attention):
    case = golden.decoder(name, attention)
    golden.close(case.attribute("archi_surgery", depth=int(case["archisurgery_depth"])).maps, case["archisurgery"])


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3", "glm4v"])
def test_archi_surgery_knows_what_a_layer_adds(family):
    case = golden.whole(family)
    task = case.task()
    layer = task.layers[-1]
    seen = {}

    def given(name):
        return lambda _module, arguments, options: seen.update({name: [*arguments, *options.values()][0]})

    handles = [
        layer.register_forward_pre_hook(given("x"), with_kwargs=True),
        layer.self_attn.register_forward_hook(lambda _module, _arguments, output: seen.update(attended=output[0])),
        *(
            norm.register_forward_pre_hook(given(name), with_kwargs=True)
            for name, norm in layer.named_children()
            if name in ("post_attention_layernorm", "pre_feedforward_layernorm")
        ),
    ]
    hidden = task.hidden()
    for handle in handles:
        handle.remove()
    from tam_fast.methods.surgery import _norm_behind

    behind = _norm_behind(layer)
    assert (behind is not None) == (family in ("gemma3", "glm4v"))
    with torch.no_grad():
        added = seen["attended"] if behind is None else behind(seen["attended"])
    read = seen.get("pre_feedforward_layernorm", seen["post_attention_layernorm"])
    torch.testing.assert_close(seen["x"] + added, read)
    one, two = (case.attribute("archi_surgery", depth=depth).maps for depth in (1, 2))
    assert one.isfinite().all()
    assert two.any()
    assert not torch.equal(one, two)
    assert torch.equal(task.hidden(), hidden)
    golden.close(golden.whole(family, attention="eager").attribute("archi_surgery").maps, two, 2e-5)


def test_archi_surgery_refuses_layers_that_do_not_attend():
    case = golden.whole("qwen3_5")
    with pytest.raises(
        ModelNotSupportedError, match=r"'archi_surgery'.* layer 0, Qwen3_5DecoderLayer, does not attend"
    ):
        case.attribute("archi_surgery")
    assert case.attribute("archi_surgery", depth=1).maps.any()
    with pytest.raises(ValueError, match="depth: expected a number of layers from 1 to 2, got 3"):
        case.attribute("archi_surgery", depth=3)
    with pytest.raises(ModelNotSupportedError, match=r"Gemma4TextDecoderLayer has .*layer_scalar"):
        golden.whole("gemma4").attribute("archi_surgery")


def test_tam_is_what_the_pipeline_makes(decoder):
    import tam_fast

    found = decoder.attribute("tam")
    task = decoder.task()
    weight = task.model.get_output_embeddings().weight.detach()
    expected = tam_fast.activation_maps(task.hidden(), weight, task.token_ids, task.layout)
    torch.testing.assert_close(found.maps, expected.maps, atol=2e-5, rtol=0)
