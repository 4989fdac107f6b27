"""Methods of attention: recorded outputs, the same rows whatever attends, what a layer has not, what is left behind."""

from __future__ import annotations

import copy
import sys
import threading
import time
import warnings

import families
import pytest
import torch
from explain.test_memory import Watch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2 import modeling_qwen2

from methods import golden
from tam_fast.maps.layout import Grid, Layout
from tam_fast.methods import METHODS as KNOWN
from tam_fast.methods import attribute, available
from tam_fast.methods.attention import attention_rows
from tam_fast.methods.attention_calls import attention_calls
from tam_fast.methods.flow import LARGEST, MaximumFlow
from tam_fast.methods.task import Task
from tam_fast.models.errors import ModelNotSupportedError

METHODS = ("attention", "rollout", "grad_rollout", "grad_attention_rollout", "grad_attention", "attention_grad_cam")
OF_A_LAYER = ("attention", "grad_attention", "attention_grad_cam")
HYBRID = "ignore:method. .* takes layers:UserWarning"
RECORDED = [
    ("attention", {}, "attention_last"),
    ("attention", {"layer": "mean"}, "attention_mean"),
    ("rollout", {}, "rollout"),
    ("grad_rollout", {}, "grad_rollout"),
    ("grad_attention_rollout", {}, "grad_attention_rollout_chefer"),
    ("grad_attention", {}, "gradient_weighted_attention_last"),
    ("grad_attention", {"layer": "mean"}, "gradient_weighted_attention_mean"),
    ("attention_grad_cam", {}, "attention_grad_cam_last"),
    ("attention_flow", {}, "attention_flow"),
]


@pytest.mark.parametrize("method, options, name", RECORDED)
def test_recorded(decoder, method, options, name):
    expected = decoder[name]
    golden.close(decoder.attribute(method, **options).maps[: len(expected)], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["a", "b"])
def test_eager_is_sdpa(case, method):
    golden.close(
        golden.decoder(case, "eager").attribute(method).maps, golden.decoder(case).attribute(method).maps, 1e-5
    )


@pytest.mark.parametrize("layer", [0, -1, "mean"])
@pytest.mark.parametrize("head", [0, 3, "mean"])
def test_layers_and_heads(decoder, layer, head):
    """Of one head alone a map may be a hundredth of what its gradients are: float32 gives it to 2e-5."""
    start, targets = decoder.layout.answer_start, len(decoder.token_ids) - decoder.layout.answer_start
    weights, slopes = decoder["attentions"], decoder["attention_gradients"]
    layers = slice(None) if layer == "mean" else [layer]
    heads = slice(None) if head == "mean" else [head]
    at = torch.arange(start - 1, start - 1 + targets)
    visual = decoder.layout.visual_positions
    rows = weights[layers][:, heads][:, :, at][..., visual]  # (L, H, T, N)
    slope = torch.stack([slopes[t, layers][:, heads, at[t]][..., visual] for t in range(targets)], dim=2)
    weighed = (slope.mean(-1, keepdim=True) * rows).mean(1).relu().mean(0)
    for case, nearness in ((decoder, 2e-5), (decoder.to(torch.float64), 1e-5)):
        maps = {method: case.attribute(method, layer=layer, heads=head).maps for method in OF_A_LAYER}
        golden.close(maps["attention"], rows.mean((0, 1)))
        golden.close(maps["grad_attention"], (rows * slope).relu().mean((0, 1)), nearness)
        golden.close(maps["attention_grad_cam"], weighed, nearness)


def rolled(weights, slopes, rows, visual, head, method):
    """Row by row of whole matrices, as the definitions are written."""
    chosen = slice(None) if head == "mean" else [head]
    count = weights.shape[-1]
    made = []
    for slope, row in zip(slopes.double(), rows, strict=True):
        total = torch.eye(count, dtype=torch.float64)
        for layer, gradient in zip(weights.double(), slope, strict=True):
            weight, product = layer[chosen], layer[chosen] * gradient[chosen]
            if method == "grad_attention_rollout":
                total = total + product.relu().mean(0) @ total
                continue
            mixed = weight.mean(0) if method == "rollout" else product.mean(0).relu()
            mixed = mixed + torch.eye(count)
            total = mixed / mixed.sum(1, keepdim=True) @ total
        made.append(total[row, visual])
    return torch.stack(made)


@pytest.mark.parametrize("method", ["rollout", "grad_rollout", "grad_attention_rollout"])
def test_rollout_of_one_head(decoder, method):
    rows = torch.arange(decoder.layout.answer_start - 1, len(decoder.token_ids) - 1)
    weights, slopes = decoder["attentions"], decoder["attention_gradients"]
    expected = rolled(weights, slopes, rows, decoder.layout.visual_positions, 2, method)
    golden.close(decoder.attribute(method, heads=2).maps, expected)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_any_size_are_one(method, monkeypatch):
    case = golden.decoder("a")
    expected = case.attribute(method).maps
    for size in (6 * 30 * 7, 1) if method == "rollout" else (6 * 30 * 7,):
        monkeypatch.setattr("tam_fast.methods.weights._BLOCK", size)
        golden.close(case.attribute(method).maps, expected, 2e-6)


# Whole models ------------------------------------------------------------------------------------

QUICK = ("qwen2_vl", "gemma3", "qwen3_5")  # plain; sliding windows, pictures seen whole; linear attention
OTHERS = sorted({name for name in families.builders() if name not in QUICK})

# Products of weights and gradients, of either sign, nearly cancel in these models, more than in the others. Then SDPA
# and eager in float32 are each as far from a run in float64 (up to 5e-5 of a map) as from each other, with any
# implementation of the experts; in float64 they are as near as the others.
CANCELLING = ("dots3_note", "granite4_vision", "muse_glimmer", "muse_spark")
NEAR = {"gradients": (5e-5, 1e-4), "weights": (2e-5, 5e-5)}  # of others, and of these
NEAR_DOUBLE = 2e-5  # eager attention rounds its softmax to float32 in any dtype


def check_rows(name):
    """Rows of every layer, by what the model attends with and by eager, against eager's own weights."""
    try:
        case, eager = golden.whole(name), golden.whole(name, attention="eager")
        task, other = case.task(), eager.task()
    except ModelNotSupportedError as error:
        pytest.skip(f"no method explains it: {error}")
    why_not = available(case.model)["attention"]
    if why_not:
        pytest.skip(why_not)
    with torch.no_grad():
        weights = eager.model(**other.inputs, use_cache=False, output_attentions=True).attentions
    weights = [weight[0].mean(0) for weight in weights if weight is not None]
    attending = [index for index in range(len(task.layers)) if can(case, index)]
    assert len(weights) == len(attending) > 0
    for index, expected in zip(attending, weights, strict=True):
        for asked in (task, other):
            found = attention_rows(asked, range(asked.positions), index)
            assert float((found - expected).abs().max()) < 1e-5
    for method in METHODS:
        near = NEAR["gradients" if "gradients" in KNOWN[method].needs else "weights"][name in CANCELLING]
        golden.close(case.attribute(method).maps, eager.attribute(method).maps, near)


def double(name, attention=None):
    """The same answer in float64; grouped products of experts have none of it."""
    case = golden.whole(name, attention=attention)
    copied = golden.copied(case.model).to(torch.float64)
    if hasattr(copied.config, "_experts_implementation"):
        copied.set_experts_implementation("eager")
    return golden.Case(copied, case.inputs, case.layout, case.token_ids)


@pytest.mark.parametrize("name", ["qwen2_vl", *(pytest.param(name, marks=pytest.mark.long) for name in CANCELLING)])
def test_maps_in_double_precision_are_those_of_eager(name):
    case, eager = double(name), double(name, "eager")
    for method in METHODS:
        golden.close(case.attribute(method).maps, eager.attribute(method).maps, NEAR_DOUBLE)


def can(case, layer):
    try:
        case.attribute("attention", layer=layer)
    except ModelNotSupportedError:
        return False
    return True


@pytest.mark.filterwarnings(HYBRID)
@pytest.mark.parametrize("name", QUICK)
def test_rows_are_those_of_eager(name):
    check_rows(name)


@pytest.mark.long
@pytest.mark.filterwarnings(HYBRID)
@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_those_of_eager_in_every_family(name):
    check_rows(name)


def test_hybrids_say_which_layers_do_not_attend():
    case = golden.whole("qwen3_5")
    layers = case.task().layers
    without = [index for index in range(len(layers)) if not can(case, index)]
    assert 0 < len(without) < len(layers)
    with pytest.raises(ModelNotSupportedError, match=f"'attention' needs attention in layer {without[0]}, got Qwen3_5"):
        case.attribute("attention", layer=without[0])
    with pytest.warns(UserWarning, match=f"'rollout' takes layers {without[0]} of Qwen3_5.* as the identity") as seen:
        case.attribute("rollout")
    assert seen[0].filename == golden.__file__, "the line that asks"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.attribute("attention", layer="mean")
        case.attribute("grad_attention")


@pytest.mark.parametrize("method", METHODS)
def test_prompt_words_too(method):
    """Those before an image attend to none of it."""
    case = golden.whole("qwen2_vl")
    first = case.layout.visual_positions[:1] - 1  # the mark before the image stands for a word
    layout = Layout(case.layout.grids, torch.cat([first, case.layout.prompt]), case.layout.answer_start)
    task = Task(case.model, case.inputs, layout, case.token_ids, with_prompt=True)
    words = layout.prompt.numel()
    maps = KNOWN[method].maps(task).detach()
    assert not maps[0].any()
    assert maps.shape[0] == words + len(case.token_ids) - case.layout.answer_start
    golden.close(maps[words:], case.attribute(method).maps, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights(method):
    case = golden.decoder("b").to(torch.float32)
    case.model.requires_grad_(False)
    golden.close(case.attribute(method).maps, golden.decoder("b").attribute(method).maps, 1e-6)
    with torch.inference_mode():
        golden.close(case.attribute(method).maps, golden.decoder("b").attribute(method).maps, 1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method, dtype, tolerance):
    case = golden.decoder("a")
    golden.close(case.to(dtype).attribute(method).maps, case.attribute(method).maps, tolerance)


def test_rows_in_double_precision():
    case = golden.decoder("b")
    found = case.to(torch.float64).task()
    golden.close(attention_rows(found, found.rows), case["attentions"][-1].mean(0)[found.rows], 1e-6)


# Errors, and what is left behind -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"layer": 3}, ValueError, "layer: expected a layer from 0 to 2, got 3"),
        ({"layer": 1.0}, TypeError, 'layer: expected None, a layer\'s number or "mean", got 1.0'),
        ({"layer": "last"}, TypeError, "layer: expected None"),
        ({"layer": True}, TypeError, "layer: expected None"),
        ({"heads": 6}, ValueError, "heads: expected a head from 0 to 5, got 6"),
        ({"heads": -1}, ValueError, "heads: expected a head from 0 to 5, got -1"),
        ({"heads": "max"}, TypeError, "heads: expected \"mean\" or a head's number, got 'max'"),
    ],
)
@pytest.mark.parametrize("method", OF_A_LAYER)
def test_wrong_options(method, options, kind, message):
    with pytest.raises(kind, match=message):
        golden.decoder("a").attribute(method, **options)


@pytest.mark.parametrize("rows, kind", [([30], ValueError), ([-1], ValueError), ([0.5], TypeError), ([[1]], TypeError)])
def test_wrong_rows(rows, kind):
    with pytest.raises(kind, match="rows: expected positions"):
        attention_rows(golden.decoder("a").task(), rows)


def test_what_cannot_be_read_is_refused_before_the_forward(monkeypatch):
    model = golden.decoder("a").to(torch.float32).model
    for layer in model.model.layers:
        layer.self_attn.config._attn_implementation = "flex_attention"
    assert (
        "'rollout' needs sdpa, FlashAttention or eager, got attn_implementation='flex_attention'"
        in (available(model)["rollout"])
    )
    hybrid = golden.whole("nemotron_h_omni")
    assert "'attention' needs layers of attention, got none in NemotronHBlock" in available(hybrid.model)["attention"]


def test_attention_of_another_kind_is_refused(monkeypatch):
    """Weights that are not softmax(q K^T) are found out by what the attention gives."""
    case = golden.decoder("a", "eager")
    eager = modeling_qwen2.eager_attention_forward

    def colder(*args, scaling, **options):
        return eager(*args, scaling=scaling / 3, **options)

    monkeypatch.setattr(modeling_qwen2, "eager_attention_forward", colder)
    with pytest.raises(ModelNotSupportedError, match=r"softmax\(q K\^T\) V in layer 2 \(Qwen2Attention\)"):
        case.attribute("attention")


def state(model):
    modules = list(model.modules())
    return (
        [(type(name), str(name)) for name in ALL_ATTENTION_FUNCTIONS],
        [id(module.config) for module in modules if hasattr(module, "config")],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        [sorted(module.__dict__) for module in modules],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
    )


@pytest.mark.parametrize("method", METHODS)
def test_nothing_stays(method, monkeypatch):
    case = golden.decoder("b")
    before = state(case.model)
    with torch.no_grad():
        case.attribute(method)
        assert not torch.is_grad_enabled()
    assert state(case.model) == before
    monkeypatch.setattr("tam_fast.methods.weights._FAR", -1.0)  # an exception within the forward
    with pytest.raises(ModelNotSupportedError):
        case.attribute(method)
    assert state(case.model) == before
    assert torch.is_grad_enabled()


def test_threads_and_nested_watchers_keep_to_themselves():
    case = golden.decoder("a")
    expected = {method: case.attribute(method).maps for method in METHODS}
    seen, found = [], {}

    def work(method):
        found[method] = case.attribute(method).maps

    before = state(case.model)
    with attention_calls(case.task().layers, lambda call: seen.append(call.layer)):
        threads = [threading.Thread(target=work, args=(method,)) for method in METHODS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not seen
        work("attention")
        assert seen == [0, 1, 2]
    assert state(case.model) == before
    for method in METHODS:
        assert torch.equal(found[method], expected[method]), method


def test_a_name_outlives_its_watcher():
    """A thread may have read the name when the last watcher leaves: it finds what the model had chosen."""
    case = golden.decoder("a")
    layers, before = case.task().layers, state(case.model)
    module = layers[0].self_attn
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    for _ in range(2):
        with attention_calls(layers, lambda call: None), attention_calls(layers[:1], lambda call: None):
            name = module.config._attn_implementation
            assert ALL_ATTENTION_FUNCTIONS.get_interface(name, None) is not own
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
        assert ALL_ATTENTION_FUNCTIONS.get_interface(name, None) is own
        assert state(case.model) == before
    copied = copy.deepcopy(name)
    with attention_calls(layers, lambda call: None):
        assert name == copied == "sdpa"
        assert ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, None) is not own


def test_what_fails_on_entering_is_undone():
    case = golden.decoder("a")
    layers, before = case.task().layers, state(case.model)

    class Stubborn:
        _attn_implementation = "sdpa"

        def __copy__(self):
            raise RuntimeError("not to be copied")

    last, own = layers[-1].self_attn, layers[-1].self_attn.config
    last.config = Stubborn()
    try:
        with pytest.raises(RuntimeError, match="not to be copied"), attention_calls(layers, lambda call: None):
            pass
    finally:
        last.config = own
    assert state(case.model) == before
    case.attribute("attention")


def test_plain_runs_beside_watchers_that_come_and_go():
    """Every run of the model in another thread attends as ever, however often somebody begins and ends to watch."""
    case = golden.decoder("a")
    layers, before = case.task().layers, state(case.model)
    done, wrong = threading.Event(), []

    def plain():
        with torch.no_grad():
            return case.model(**case.inputs, use_cache=False).logits

    expected = plain()

    def work():
        try:
            while not done.is_set():
                if not torch.equal(plain(), expected):
                    wrong.append("other logits")
        except Exception as error:
            wrong.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            with attention_calls(layers, lambda call: None):
                time.sleep(0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not wrong, wrong[:3]
    assert state(case.model) == before


def test_functions_read_the_models_own_configuration():
    """A watched model's name reads as before, and the function that attends is given the model's configuration."""
    case = golden.decoder("b").to(torch.float32)
    seen = []

    def attend(module, *args, **options):
        seen.append((module.config._attn_implementation, module.config is case.model.config))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **options)

    ALL_ATTENTION_FUNCTIONS.register("tam_fast_test", attend)
    try:
        case.model.set_attn_implementation("tam_fast_test")
        modules = [layer.self_attn for layer in case.model.model.layers]
        with attention_calls(case.task().layers, lambda call: None):
            assert [module.config._attn_implementation for module in modules] == ["tam_fast_test"] * 2
        golden.close(case.attribute("attention").maps, case["attention_last"])
        assert seen
        assert {type(name) for name, _ in seen} == {str}
        assert all(own for _, own in seen)
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["tam_fast_test"]


# Flow and memory -----------------------------------------------------------------------------------


def test_maximum_flow_of_random_graphs():
    scipy = pytest.importorskip("scipy.sparse")
    from scipy.sparse.csgraph import maximum_flow

    generator = torch.Generator().manual_seed(0)
    for nodes in (2, 5, 9, 16):
        amounts = torch.randint(0, 9, (nodes, nodes), generator=generator) * (
            torch.rand(nodes, nodes, generator=generator) < 0.4
        )
        amounts.fill_diagonal_(0)
        flow = MaximumFlow(nodes)
        for begin, end in amounts.nonzero().tolist():
            flow.add(begin, end, float(amounts[begin, end]))
        graph = scipy.csr_matrix(amounts.numpy().astype("int32"))
        for sink in range(1, nodes):
            expected = maximum_flow(graph, 0, sink).flow_value
            assert flow.between(0, sink) == pytest.approx(expected, abs=1e-9)


def test_flow_is_for_test_sizes(monkeypatch):
    monkeypatch.setattr("tam_fast.methods.flow.LARGEST", 3 * 30 * 31 // 2 - 1)
    with pytest.raises(
        ValueError, match=r"'attention_flow' expected at most 1,394 edges .* got 1,395 of 3 layers and 30"
    ):
        golden.decoder("a").attribute("attention_flow")
    assert LARGEST >= 2 * 128 * 128 // 2


def test_no_layers_weights_are_kept(monkeypatch):
    """No (H, S, S) is made, and rollout takes less than a tenth of what storing all of them takes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    monkeypatch.setattr("tam_fast.methods.weights._BLOCK", 1 << 16)  # as small a part of it as of a large model
    torch.manual_seed(0)
    count, heads, layers = 440, 8, 4
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(config).eval()
    layout = Layout([Grid(torch.arange(10, 410), 20, 20)], torch.arange(412, 430), count - 1)
    inputs, ids = {"inputs_embeds": torch.randn(1, count, 64)}, torch.randint(0, 32, (count + 1,))
    with Watch() as plain:
        Task(model, inputs, layout, ids).hidden()
    stored = layers * heads * count * count * 4
    for method in ("attention", "rollout", "grad_attention_rollout"):
        with Watch() as watch:
            attribute(model, inputs, layout, ids, method)
        assert not [shape for _, shape, _ in watch.shapes if len(shape) > 2 and shape[-2:] == (count, count)], method
        if method != "grad_attention_rollout":  # which keeps a graph of the forward pass
            assert watch.peak - plain.peak < stored / 10, method
