"""AttnLRP and CP-LRP: the data, rules written another way, what relevance sums to, and that nothing is left behind."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from methods import golden
from tam_fast.methods import available
from tam_fast.methods.kinds import kinds_of
from tam_fast.methods.relevance import check_conservation, relevance
from tam_fast.methods.rules import rules
from tam_fast.models import ModelNotSupportedError

PUBLISHED = [("attn_lrp", "attnlrp"), ("cp_lrp", "cplrp")]
METHODS = [method for method, _ in PUBLISHED]


def everywhere(case, method):
    """Relevance (T, S) of all positions, and z_i (T,)."""
    task = case.task()
    with torch.enable_grad():
        found = relevance(task, method, torch.arange(task.positions))
    return found, task.logits(task.hidden()).detach()


def copied(case):
    return golden.Case(copy.deepcopy(case.model), case.inputs, case.layout, case.token_ids, case.arrays)


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "name"), PUBLISHED)
def test_published_relevance(decoder, method, name):
    golden.close(decoder.attribute(method).maps, decoder[name][:, decoder.layout.visual_positions])
    golden.close(everywhere(decoder, method)[0], decoder[name])


@pytest.mark.parametrize("method", METHODS)
def test_eager_attention_has_the_relevance_of_sdpa(method):
    one, other = (golden.decoder("a", attention).attribute(method).maps for attention in ("sdpa", "eager"))
    golden.close(one, other, 4e-6)


def test_cp_lrp_conserves_and_attn_lrp_does_not():
    case = golden.decoder("b")
    found, scores = everywhere(case, "cp_lrp")
    torch.testing.assert_close(found.sum(dim=1), scores, rtol=1e-5, atol=1e-6)
    found, scores = everywhere(case, "attn_lrp")
    assert ((found.sum(dim=1) / scores - 1).abs() > 1e-3).all()


# Post norms, sliding layers; features in deeper layers; LayerNorm and parallel layers; plain MLPs and norms with bias.
FAMILIES = ["gemma3", "qwen3_vl", "granite4_vision", "cohere2_vision", "fuyu", "qwen2_vl", "llava"]


@pytest.mark.parametrize("family", FAMILIES)
def test_cp_lrp_of_whole_models_conserves(family):
    case = golden.whole(family)  # biases of new models are 0
    found, scores = everywhere(case, "cp_lrp")
    largest = found.abs().sum(dim=1).max()
    torch.testing.assert_close(found.sum(dim=1), scores, rtol=0.0, atol=2e-6 * float(largest))
    golden.close(case.attribute("cp_lrp").maps, found[:, case.layout.visual_positions], 1e-5)
    assert (case.attribute("attn_lrp").maps < 0).any()


def gemma3_by_patches(monkeypatch, method):
    """Write the rules into the classes of Gemma 3, as published programs do."""
    from transformers.models.gemma3 import modeling_gemma3 as source

    def held(values, factor):
        return values * factor + (values * (1 - factor)).detach()

    def norm(_self, states):
        return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + _self.eps).detach()

    def mlp(self, states):
        gate, up = self.gate_proj(states), self.up_proj(states)
        gate = gate * (self.act_fn(gate) / gate).detach()
        return self.down_proj(held(gate * up, 0.5) if method == "attn_lrp" else gate.detach() * up)

    attend = source.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module, query, key, value, *rest, **options):
        if method == "attn_lrp":
            query, key, value = held(query, 0.25), held(key, 0.25), held(value, 0.5)
        else:
            query, key = query.detach(), key.detach()
        return attend(module, query, key, value, *rest, **options)

    monkeypatch.setattr(source.Gemma3RMSNorm, "_norm", norm)
    monkeypatch.setattr(source.Gemma3MLP, "forward", mlp)
    monkeypatch.setitem(source.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attention)


@pytest.mark.parametrize("method", METHODS)
def test_rules_of_gemma3_by_patches(monkeypatch, method):
    case = golden.whole("gemma3")
    assert case.model.config._attn_implementation == "sdpa", "which the patches stand in for"
    found, _ = everywhere(case, method)
    task = case.task()
    leaf = task.call.embeddings.clone().requires_grad_()
    gemma3_by_patches(monkeypatch, method)
    scores = task.logits(task.call(leaf))
    gradients = [torch.autograd.grad(score, leaf, retain_graph=True)[0][0] for score in scores]
    golden.close(found, torch.stack([(gradient * leaf[0]).sum(dim=1) for gradient in gradients]).detach())


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method):
    case = golden.decoder("a")
    exact = case.attribute(method).maps
    for dtype, nearness in ((torch.bfloat16, 0.999), (torch.float16, 0.9999)):
        found = case.to(dtype).attribute(method).maps
        for one, other in zip(exact, found, strict=True):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > nearness


def test_float16_that_overflows_is_an_error():
    case = golden.decoder("b").to(torch.float16)
    with torch.no_grad():
        case.model.lm_head.weight.mul_(3e4 / case.model.lm_head.weight.abs().max())
        case.model.model.norm.weight.fill_(1e3)
    with pytest.raises(
        ModelNotSupportedError, match="'attn_lrp' overflows in float16 in Qwen2Model: load the model in"
    ):
        case.attribute("attn_lrp")


# Modules -------------------------------------------------------------------------------------------------------------


def norms():
    from transformers.models.cohere2.modeling_cohere2 import Cohere2LayerNorm
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    return {
        "qwen2": (Qwen2RMSNorm(12, 1e-5), False),
        "gemma3": (Gemma3RMSNorm(12), False),
        "torch": (nn.RMSNorm(12, eps=1e-3), False),
        "default": (nn.RMSNorm(12), False),
        "unweighted": (Llama4TextL2Norm(1e-6), False),
        "layer": (nn.LayerNorm(12), True),
        "cohere": (Cohere2LayerNorm(12, 1e-5), True),
        "heads": (Cohere2LayerNorm((3, 12), 1e-5), True),
    }


def with_norm(norm):
    """Return a decoder with another final norm."""
    model = copy.deepcopy(golden.decoder("b").model.model)
    model.norm = norm
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(norms()))
def test_norms_are_known_by_what_they_do(name, dtype):
    norm, centred = norms()[name]
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.to(dtype)
    decoder = with_norm(norm)
    kinds = kinds_of(decoder, "attn_lrp")
    states = torch.randn(2, 3, 12, dtype=dtype).requires_grad_()
    slope = torch.randn(2, 3, 12, dtype=dtype)
    plain = norm(states)
    with rules(kinds, "attn_lrp"):
        output = norm(states)
    assert torch.equal(output, plain)
    (found,) = torch.autograd.grad(output, states, slope)
    exact = states.detach().double()
    weight = getattr(norm, "weight", torch.ones(12)).detach().double() + (name == "gemma3")
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None)) or torch.finfo(torch.float32).eps
    centre = exact.mean(-1, keepdim=True) if centred else 0.0
    expected = slope.double() * weight / ((exact - centre).square().mean(-1, keepdim=True) + epsilon).sqrt()
    expected = expected - expected.mean(-1, keepdim=True) if centred else expected
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


class Unit(nn.Module):
    def forward(self, states):
        return nn.functional.normalize(states, dim=-1)


@pytest.mark.parametrize("module", [Unit(), nn.Linear(32, 32), nn.Conv1d(3, 3, 1), nn.Softmax(-1), nn.GroupNorm(2, 32)])
def test_others_are_no_norms(module):
    with pytest.raises(
        ModelNotSupportedError, match=f"'cp_lrp' has rules for .* none for norm, {type(module).__name__}"
    ):
        kinds_of(with_norm(module), "cp_lrp")


def test_activations_at_zero_and_of_half_precision():
    kinds = kinds_of(golden.decoder("b").model.model, "attn_lrp")
    module = kinds.activations[0].module
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.tensor([-3.0, -0.0, 0.0, 1e-6, 2.0], dtype=dtype, requires_grad=True)
        with rules(kinds, "attn_lrp"):
            output = module(states)
        (found,) = torch.autograd.grad(output.sum(), states)
        torch.testing.assert_close(found, states.detach().sigmoid())  # silu(g) / g


def test_biases_take_their_share():
    for family in ("qwen2_vl", "fuyu"):
        model = copy.deepcopy(golden.whole(family).model)
        decoder = model.get_decoder()
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.5)
        check_conservation(decoder, kinds_of(decoder, "cp_lrp"), "cp_lrp")


class Adapted(nn.Module):
    """A linear module with an adapter, in the manner of LoRA."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})

    def forward(self, states):
        more = self.lora_B["default"](self.lora_A["default"](self.lora_dropout["default"](states)))
        return self.base_layer(states) + more


def test_adapters_are_linear():
    case = copied(golden.decoder("b"))
    for layer in case.model.model.layers:
        for part, name in ((layer.self_attn, "v_proj"), (layer.mlp, "gate_proj"), (layer.mlp, "down_proj")):
            setattr(part, name, Adapted(getattr(part, name)))
    found, scores = everywhere(case, "cp_lrp")
    torch.testing.assert_close(found.sum(dim=1), scores, rtol=1e-5, atol=1e-6)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen3_5", "layers.0, Qwen3_5DecoderLayer: it has no attention"),
        ("qwen3_vl_moe", "layers.0.mlp, Qwen3VLMoeTextSparseMoeBlock: of experts, gate"),
        ("gemma4", "per_layer_model_projection, Linear"),
        ("step3p7", "layers.0.self_attn.g_proj, Linear: what it is to attention is not known"),
    ],
)
def test_models_without_rules_are_refused_before_they_run(family, message):
    case = golden.whole(family)
    ran = []
    handle = case.model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ModelNotSupportedError, match=rf"'attn_lrp' has rules for .*none for {message}"):
        case.attribute("attn_lrp")
    handle.remove()
    assert not ran
    assert message in available(case.model)["cp_lrp"]


def test_what_a_layer_does_beside_its_modules_is_refused():
    case = copied(golden.decoder("a"))
    mlp = case.model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda states: plain(states) * states.mean(dim=-1, keepdim=True).sigmoid()
    with pytest.raises(
        ModelNotSupportedError, match=r"'attn_lrp' has no rule for something that layers.1, Qwen2Decoder"
    ):
        case.attribute("attn_lrp")


def test_queries_with_gates_are_refused():
    model = copy.deepcopy(golden.decoder("b").model)
    attention = model.model.layers[1].self_attn
    attention.q_proj = nn.Linear(32, 64)
    with pytest.raises(
        ModelNotSupportedError, match=r"layers.1.self_attn, Qwen2Attention: q_proj gives 64 .* o_proj's 32"
    ):
        kinds_of(model.model, "attn_lrp")


# Nothing is left behind ----------------------------------------------------------------------------------------------


def state_of(model):
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    return (
        hooks,
        [sorted(part.__dict__) for part in model.modules()],
        [id(vars(m).get("config")) for m in model.modules()],
    )


def plain_gradient(case):
    return case.attribute("gradient_input").maps


@pytest.mark.parametrize("method", METHODS)
def test_hidden_states_stay_to_the_bit_and_nothing_is_left(method):
    case = golden.decoder("a")
    task = case.task()
    before, expected, states = state_of(case.model), plain_gradient(case), task.hidden()
    with torch.no_grad(), rules(kinds_of(task.decoder, method), method):
        assert torch.equal(task.call(), states)
    case.attribute(method)
    assert state_of(case.model) == before
    assert torch.equal(plain_gradient(case), expected)


def test_nothing_is_left_after_an_exception():
    case = golden.decoder("a")
    before, expected = state_of(case.model), plain_gradient(case)

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = case.model.model.layers[1].mlp.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="in the middle"):
            case.attribute("attn_lrp")
    finally:
        handle.remove()
    assert state_of(case.model) == before
    assert torch.equal(plain_gradient(case), expected)


def test_other_threads_see_no_rules():
    case = golden.decoder("a")
    expected, own = plain_gradient(case), case.attribute("cp_lrp").maps
    found = {}

    def work():
        found["plain"] = plain_gradient(case)
        found["cp"] = case.attribute("cp_lrp").maps

    with rules(kinds_of(case.model.model, "attn_lrp"), "attn_lrp"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not torch.equal(plain_gradient(case), expected)
    assert torch.equal(found["plain"], expected)
    assert torch.equal(found["cp"], own)


def test_the_innermost_rules_hold():
    case = golden.decoder("a")
    expected = {method: case.attribute(method).maps for method in METHODS}
    kinds = kinds_of(case.model.model, "attn_lrp")
    with rules(kinds, "attn_lrp"):
        with rules(kinds, "cp_lrp"):
            golden.close(plain_gradient(case), expected["cp_lrp"], 1e-6)
        golden.close(plain_gradient(case), expected["attn_lrp"], 1e-6)
        golden.close(case.attribute("cp_lrp").maps, expected["cp_lrp"], 1e-6)


def test_targets_share_one_pass():
    case = golden.decoder("a")
    case.attribute("attn_lrp")  # the decoder's layers are looked at once
    ran = []
    handle = case.model.model.norm.register_forward_hook(lambda *_: ran.append(1))
    case.attribute("attn_lrp")
    handle.remove()
    assert ran == [1]


@pytest.mark.long
def test_every_family_that_is_not_refused_conserves():
    from families import builders

    known = 0
    for name in sorted(builders()):
        try:
            case = golden.whole(name)
        except pytest.skip.Exception:  # this version of transformers has no such family
            continue
        if available(case.model)["cp_lrp"] or "reference_sliding" in str(case.model.config):
            continue
        found, scores = everywhere(case, "cp_lrp")
        known += 1
        assert ((found.sum(dim=1) - scores).abs() <= 2e-6 * found.abs().sum(dim=1)).all(), name
    assert known >= 40
