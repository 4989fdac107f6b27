"""Maps and model agree: whose states an explanation is made of, whatever wraps, asks, adapts or quantises the model."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
from conftest_models import PROMPT, hooks, picture
from explainers import GREEDY, SAME_MODEL, STEPS, assert_same, make
from transformers import LogitsProcessor, LogitsProcessorList

import tam_fast
from tam_fast import Explainer, ModelNotSupportedError
from tam_fast.explain.job import Job
from tam_fast.models.chat import read_chat
from tam_fast.models.inputs import prepare_inputs


@pytest.fixture(params=["qwen2", pytest.param("llava", marks=pytest.mark.long)])
def made(request):
    return make(request.param)


@pytest.fixture(autouse=True)
def no_thread_for_bars(monkeypatch):
    """Merging adapters shows a bar, which would have a thread."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)


def agrees(e, explainer, source="generated", probabilities=True):
    """Check an explanation against a pass over the same tokens, which asks the head of every one of them."""
    told = explainer.explain(picture(), PROMPT, answer=e.token_ids)
    assert (e.source, told.source) == (source, "given")
    assert e.token_ids == told.token_ids
    torch.testing.assert_close(e.maps.maps, told.maps.maps, **SAME_MODEL)
    torch.testing.assert_close(e.relevance, told.relevance, **SAME_MODEL)
    for step, others in zip(e.candidates, told.candidates, strict=True) if probabilities else ():
        assert [c.probability for c in step] == pytest.approx([c.probability for c in others], rel=1e-3, abs=1e-6)
    return told


# Others who call the model -------------------------------------------------------------------------


class Asks(LogitsProcessor):
    """Asks the model again in every step, in some way, and mixes what it says in."""

    def __init__(self, model, how):
        self.model, self.how, self.cache, self.calls = model, how, None, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        ids = input_ids[:, -3:]
        if self.how == "decoder":
            self.model.get_decoder()(input_ids=ids)
            return scores
        if self.how == "cached":
            out = self.model(input_ids=ids if self.cache is None else ids[:, -1:], past_key_values=self.cache)
            self.cache = out.past_key_values
        else:
            out = self.model(input_ids=ids, use_cache=self.how == "cacheless")
        return scores + 0.1 * out.logits[:, -1]


@pytest.mark.parametrize("how", ["cached", "fresh", "cacheless", "decoder"])
def test_calls_of_others_are_not_the_answers(made, how):
    model, processor = made
    explainer = Explainer(model, processor)
    asking = Asks(model, how)
    e = explainer.explain(picture(), PROMPT, logits_processor=LogitsProcessorList([asking]), **GREEDY)
    assert asking.calls >= STEPS
    agrees(e, explainer)
    assert not hooks(model)
    stream = explainer.stream(picture(), PROMPT, logits_processor=LogitsProcessorList([Asks(model, how)]), **GREEDY)
    for step, expected in zip(stream, e.maps.maps, strict=True):
        torch.testing.assert_close(step.map, expected, **SAME_MODEL)


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.5}, {"do_sample": True, "top_k": 5}, {"num_beams": 1}])
def test_ways_of_decoding(settings):
    model, processor = make("llava")
    explainer = Explainer(model, processor)
    torch.manual_seed(0)
    # It might sample the placeholder of an image, which is no answer.
    suppressed = {"suppress_tokens": [model.config.image_token_id]}
    agrees(explainer.explain(picture(), PROMPT, **{**GREEDY, **suppressed, **settings}), explainer)


def test_a_model_that_mixes_two_passes_itself_is_refused_or_passed_over(made):
    model, processor = made
    original = type(model).forward

    class Guided(type(model)):
        @functools.wraps(original)
        def forward(self, *arguments, **options):
            output = original(self, *arguments, **options)
            with torch.no_grad():
                other = original(self, input_ids=torch.tensor([[1, 2]]), use_cache=False).logits[:, -1:]
            output.logits = 1.7 * output.logits - 0.7 * other
            return output

    model.__class__ = Guided
    explainer = Explainer(model, processor)
    with pytest.raises(ModelNotSupportedError, match=r"got 2 from Guided.*while it generated: 0 steps of 8 were seen"):
        explainer.explain(picture(), PROMPT, **GREEDY)
    stream = explainer.stream(picture(), PROMPT, **GREEDY)
    with pytest.raises(ModelNotSupportedError, match=r"Explainer.explain\(\) takes the states"):
        _ = [step.map for step in stream]


def test_a_head_that_gives_other_logits_than_its_rows_is_refused(made):
    model, processor = made
    explainer = Explainer(model, processor)
    wrong = torch.randn(model.lm_head.weight.shape[0], generator=torch.Generator().manual_seed(1))
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output + wrong)
    try:
        for arguments in ({"answer": [5, 6, 7]}, GREEDY):
            with pytest.raises(ModelNotSupportedError, match="its row times the captured state"):
                explainer.explain(picture(), PROMPT, **arguments)
    finally:
        handle.remove()
    agrees(explainer.explain(picture(), PROMPT, **GREEDY), explainer)


@pytest.mark.parametrize("transform", ["scaled", "capped"])
def test_logits_that_are_scaled_or_capped_are_understood(made, transform):
    model, processor = made
    plain = Explainer(model, processor).explain(picture(), PROMPT, **GREEDY)
    original = type(model).forward

    class Transformed(type(model)):
        @functools.wraps(original)
        def forward(self, *arguments, **options):
            output = original(self, *arguments, **options)
            logits = output.logits
            output.logits = logits * 0.25 if transform == "scaled" else 30 * torch.tanh(logits / 30)
            return output

    model.__class__ = Transformed
    model.config.get_text_config().final_logit_softcapping = 30.0 if transform == "capped" else None
    e = Explainer(model, processor).explain(picture(), PROMPT, **GREEDY)
    assert e.source == "generated"
    assert e.token_ids == plain.token_ids
    assert torch.equal(e.maps.maps, plain.maps.maps)


@pytest.mark.parametrize("keeps", [True, False], ids=["logits_to_keep", "all logits"])
@pytest.mark.parametrize(
    ("factor", "cap"), [(0.25, None), (4.0, None), (1.0, 3.0), (0.25, 3.0), (1.0, 1e4), (1.0, None)]
)
def test_candidates_of_a_given_answer_have_the_models_own_probabilities(made, factor, cap, keeps):
    model, processor = made
    plain = type(model)

    class Transformed(plain):
        @functools.wraps(plain.forward)
        def forward(self, *arguments, **options):
            output = plain.forward(self, *arguments, **options)
            logits = output.logits * factor
            output.logits = logits if cap is None else cap * torch.tanh(logits / cap)
            return output

    whole = inspect.signature(plain.forward)
    some = [value for name, value in whole.parameters.items() if keeps or name != "logits_to_keep"]
    Transformed.forward.__signature__ = whole.replace(parameters=some)
    model.__class__ = Transformed
    model.config.get_text_config().final_logit_softcapping = cap
    model.config.get_text_config().attn_logit_softcapping = 50.0
    answer = [70, 71, 7, 65, 66]
    explainer = Explainer(model, processor)
    e = explainer.explain(picture(), PROMPT, answer=answer)
    prompt = prepare_inputs(model, processor, [picture()], PROMPT)
    chat = read_chat([picture()], PROMPT)
    inputs = Job(model, processor, explainer._head(), chat, prompt, 3).model_inputs(answer[:-1])
    with torch.no_grad():
        logits = model(**inputs).logits[0, prompt.layout.answer_start - 1 :]
    assert len(logits) == len(answer)
    for row, step in zip(logits.double().softmax(-1), e.candidates, strict=True):
        expected = [float(row[candidate.token_id]) for candidate in step]
        assert [candidate.probability for candidate in step] == pytest.approx(expected, rel=1e-4)
        assert expected == pytest.approx(row.topk(3).values.tolist(), rel=1e-4)


def test_states_that_no_step_showed_come_from_a_pass_over_the_answer(made, monkeypatch):
    model, processor = made
    plain = Explainer(model, processor).explain(picture(), PROMPT, **GREEDY)
    generate = type(model).generate

    def custom(self, input_ids, **options):
        # A loop of its own, which calls the inner parts.
        forward, self.__class__.__call__ = self.__class__.__call__, self.__class__.forward
        try:
            return generate(self, input_ids=input_ids, **options)
        finally:
            self.__class__.__call__ = forward

    monkeypatch.setattr(type(model), "generate", custom)
    explainer = Explainer(model, processor)
    e = explainer.explain(picture(), PROMPT, **GREEDY)
    assert e.token_ids == plain.token_ids
    agrees(e, explainer, source="teacher_forced")


# Wrappers ------------------------------------------------------------------------------------------


QUICK_WRAPPERS = [("wrapped", False), ("parallel", False)]
OTHER_WRAPPERS = [
    ("wrapped", True),
    ("in place", True),
    ("in place", False),
    ("forward", False),
    ("forward", True),
    ("decoder", True),
]


@pytest.mark.parametrize(
    ("how", "warm"), [*QUICK_WRAPPERS, *(pytest.param(*case, marks=pytest.mark.long) for case in OTHER_WRAPPERS)]
)
def test_wrappers_change_nothing(how, warm):
    model, processor = make("qwen2")
    plain = Explainer(model, processor).explain(picture(), PROMPT, **GREEDY)
    wrapped = model
    if how == "wrapped":
        wrapped = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "decoder":
        model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    else:
        wrapped = torch.nn.DataParallel(model)
    if warm:
        # The very calls that are to be watched: their graphs know of no hooks.
        job = Explainer(model, processor)._prepare(picture(), PROMPT, 3)
        for _ in range(2):
            wrapped.generate(**job.model_inputs(), **GREEDY)
    explainer = Explainer(wrapped, processor)
    assert_same(explainer.explain(picture(), PROMPT, **GREEDY), plain)
    stream = explainer.stream(picture(), PROMPT, **GREEDY)
    list(stream)
    assert_same(stream.explanation, plain)
    told = explainer.explain(picture(), PROMPT, answer=plain.token_ids)
    torch.testing.assert_close(told.maps.maps, plain.maps.maps, **SAME_MODEL)


def test_adapters_in_the_layers_are_explained():
    peft = pytest.importorskip("peft")
    model, processor = make("qwen2")
    plain = Explainer(copy.deepcopy(model), processor).explain(picture(), PROMPT, **GREEDY)
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings).eval()
    explainer = Explainer(adapted, processor)
    e = explainer.explain(picture(), PROMPT, **GREEDY)
    told = agrees(e, explainer)
    merged = adapted.merge_and_unload().eval()
    truth = Explainer(merged, processor).explain(picture(), PROMPT, answer=e.token_ids)
    torch.testing.assert_close(told.maps.maps, truth.maps.maps, rtol=0, atol=1e-4)
    forced = Explainer(merged, processor).explain(picture(), PROMPT, answer=plain.token_ids)
    assert not torch.allclose(forced.maps.maps, plain.maps.maps, atol=1e-3)


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_virtual_tokens_are_refused_before_the_model_runs(kind):
    peft = pytest.importorskip("peft")
    model, processor = make("qwen2")
    text = model.config.get_text_config()
    settings = getattr(peft, kind)(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        num_layers=text.num_hidden_layers,
        token_dim=text.hidden_size,
        num_attention_heads=text.num_attention_heads,
        **({"num_transformer_submodules": 1}),
    )
    adapted = peft.PeftModelForCausalLM(model, settings)
    with pytest.raises(ModelNotSupportedError, match="virtual tokens"):
        Explainer(adapted, processor)


# What the model really multiplies with -------------------------------------------------------------


def merged_truth(model, processor, weight, e):
    """Explain the same tokens by a plain head of these rows."""
    plain = copy.deepcopy(model)
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = torch.nn.Parameter(weight.detach().clone())
    plain.lm_head = head
    return Explainer(plain.eval(), processor).explain(picture(), PROMPT, answer=e.token_ids)


@pytest.mark.parametrize("special", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_an_adapter_on_the_head_is_merged(special):
    peft = pytest.importorskip("peft")
    model, processor = make("qwen2")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["lm_head"], init_lora_weights=False, **special)
    adapted = peft.get_peft_model(model, settings).eval()
    explainer = Explainer(adapted, processor)
    e = explainer.explain(picture(), PROMPT, **GREEDY)
    told = agrees(e, explainer)
    stream = explainer.stream(picture(), PROMPT, **GREEDY)
    list(stream)
    torch.testing.assert_close(stream.explanation.maps.maps, e.maps.maps, **SAME_MODEL)
    official = explainer.explain(picture(), PROMPT, answer=e.token_ids, compat="official")
    merged = adapted.merge_and_unload().eval()
    truth = Explainer(merged, processor).explain(picture(), PROMPT, answer=e.token_ids)
    torch.testing.assert_close(told.maps.maps, truth.maps.maps, rtol=0, atol=1e-4)
    assert torch.equal(told.maps.context_ids, truth.maps.context_ids)
    assert torch.equal(told.maps.target_ids, truth.maps.target_ids)
    truth = Explainer(merged, processor).explain(picture(), PROMPT, answer=e.token_ids, compat="official")
    torch.testing.assert_close(official.maps.maps, truth.maps.maps, rtol=0, atol=1e-4, equal_nan=True)


def test_an_adapter_with_a_bias_of_its_own_is_understood():
    peft = pytest.importorskip("peft")
    model, processor = make("qwen2")
    torch.manual_seed(0)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.lm_head.out_features))
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["lm_head"], init_lora_weights=False, bias="none", lora_bias=True
    )
    adapted = peft.get_peft_model(model, settings).eval()
    torch.nn.init.normal_(adapted.base_model.model.lm_head.lora_B["default"].bias)
    explainer = Explainer(adapted, processor)
    e = explainer.explain(picture(), PROMPT, **GREEDY)
    agrees(e, explainer)
    with adapted.disable_adapter():
        assert explainer.explain(picture(), PROMPT, **GREEDY).source == "generated"


def test_an_adapter_on_a_head_that_is_tied_to_the_input_is_refused():
    peft = pytest.importorskip("peft")
    model, processor = tam_fast.load_demo()
    settings = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    with pytest.raises(ModelNotSupportedError, match="untie"):
        Explainer(peft.get_peft_model(model, settings).eval(), processor)


class Opaque(torch.nn.Module):
    """A linear head of which nothing can be read, as the kernels of quantisers are."""

    def __init__(self, weight):
        super().__init__()
        self.out_features, self.hidden = weight.shape[0], [weight]

    def forward(self, states):
        return states @ self.hidden[0].T


def heads():
    def normed(head):
        return torch.nn.utils.parametrizations.weight_norm(head), lambda module: module.weight

    def normed_by_a_hook(head):
        return torch.nn.utils.weight_norm(
            head
        ), lambda module: head.weight_g / head.weight_v.norm(dim=1, keepdim=True) * head.weight_v

    def biased(head):
        wide = torch.nn.Linear(head.in_features, head.out_features)
        wide.weight = head.weight
        return wide, lambda module: module.weight

    def opaque(head):
        return Opaque(head.weight.detach()), lambda module: module.hidden[0]

    def quantised(head):
        holder = torch.nn.Sequential(head)
        torch.ao.quantization.quantize_dynamic(holder, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
        return holder[0], lambda module: module.weight().dequantize()

    return [normed, normed_by_a_hook, biased, opaque, quantised]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_head", heads(), ids=lambda make_head: make_head.__name__)
def test_rows_of_any_head(make_head):
    model, processor = make("qwen2")
    model.lm_head, rows = make_head(model.lm_head)
    model.lm_head.eval()
    explainer = Explainer(model, processor)
    e = explainer.explain(picture(), PROMPT, **GREEDY)
    # Dynamic quantisation rounds the states of a call together, so that logits depend on their number.
    agrees(e, explainer, probabilities=make_head.__name__ != "quantised")
    truth = merged_truth(make("qwen2")[0], processor, rows(model.lm_head), e)
    torch.testing.assert_close(e.maps.maps, truth.maps.maps, rtol=0, atol=1e-4)


def test_an_offloaded_head_is_fetched(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, processor = make("qwen2")
    plain = Explainer(model, processor).explain(picture(), PROMPT, **GREEDY)
    for number, places in enumerate(({"model": "cpu", "lm_head": "disk"}, {"model": "disk", "lm_head": "cpu"})):
        offloaded = accelerate.dispatch_model(
            make("qwen2")[0], places, offload_dir=str(tmp_path / str(number)), main_device="cpu", force_hooks=True
        )
        explainer = Explainer(offloaded, processor)
        e = explainer.explain(picture(), PROMPT, **GREEDY)
        assert (e.source, e.token_ids) == ("generated", plain.token_ids)
        torch.testing.assert_close(e.maps.maps, plain.maps.maps, **SAME_MODEL)
        agrees(e, explainer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_verified(made, dtype):
    model, processor = made
    explainer = Explainer(model.to(dtype), processor)
    assert explainer.explain(picture(), PROMPT, **GREEDY).source == "generated"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Explainer(model.float(), processor).explain(picture(), PROMPT, **GREEDY).source == "generated"
