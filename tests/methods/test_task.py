"""What all methods stand on: the task, the registry, and that nothing of a call is left behind."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading

import pytest
import torch

import tam_fast.methods
from methods import golden
from tam_fast.maps.layout import Grid, Layout
from tam_fast.methods import METHODS, attribute, available, register, registry
from tam_fast.methods.task import Task, hooked, layers_of
from tam_fast.models import ModelNotSupportedError

OURS = {
    "cam": {},
    "archi_surgery": {},
    "feature_surgery": {},
    "grad_cam": {"layer": 0},
    "layer_cam": {"layer": "mean"},
    "llava_cam": {"smooth": 2},
    "vision_grad_cam": {},
    "gradient_input": {},
    "integrated_gradients": {"steps": 2},
    "smooth_grad": {"copies": 2},
}


# The task --------------------------------------------------------------------------------------------------------


def test_a_task_gives_what_the_decoder_gave(decoder):
    task = decoder.task()
    assert len(task) == len(decoder["target_logit"])
    assert task.positions == decoder["hidden"].shape[0]
    torch.testing.assert_close(task.hidden(), decoder["hidden"], rtol=0.0, atol=2e-5)
    scores = task.logits(task.hidden())
    torch.testing.assert_close(scores.double(), decoder["target_logit"], rtol=0.0, atol=2e-5)
    found = task.log_probabilities(task.hidden())
    torch.testing.assert_close(found.double(), decoder["log_probability"], rtol=0.0, atol=2e-5)
    assert not scores.requires_grad
    assert task.logits(task.call(task.call.embeddings.clone().requires_grad_())).requires_grad


def test_several_variants_are_run_as_each_alone():
    task = golden.whole("qwen2_vl").task()
    others = task.call.embeddings * torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    with torch.no_grad():
        together = task.call(others)
        for index, found in enumerate(together):
            torch.testing.assert_close(found, task.call(others[index : index + 1]))
    assert task.log_probabilities(together).shape == (3, len(task))


def test_the_vision_tower_runs_once_for_all_uses():
    case, ran = golden.whole("llava"), []
    with hooked([case.model.model.vision_tower], lambda *_: ran.append(1)):
        task = case.task()
        task.hidden()
        task.call()
        assert sum(ran) == 1
        other = task.with_inputs({**task.inputs, "pixel_values": task.inputs["pixel_values"] * 0.5})
        assert not torch.equal(other.hidden(), task.hidden())
        assert sum(ran) == 2
    assert len(other) == len(task)


def test_the_prompts_words_may_be_explained_too():
    case = golden.decoder("a")
    task = Task(case.model, case.inputs, case.layout, case.token_ids, with_prompt=True)
    count = case.layout.prompt.numel()
    assert task.targets.tolist() == [*case.token_ids[case.layout.prompt], *case.token_ids[case.layout.answer_start :]]
    assert task.rows[count:].tolist() == case.task().rows.tolist()
    assert task.rows[:count].tolist() == [max(int(position) - 1, 0) for position in case.layout.prompt]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": "grid"}, TypeError, "layout: expected a Layout, got str"),
        ({"inputs": [1]}, TypeError, "inputs: expected a mapping for the model's forward, got list"),
        ({"inputs": {"pixel_values": 1}}, ValueError, "inputs: expected input_ids or inputs_embeds, got pixel_values"),
        ({"inputs": {"inputs_embeds": torch.zeros(2, 5, 32)}}, ValueError, "inputs: expected inputs_embeds of one"),
        ({"token_ids": [1, 2, 3]}, ValueError, r"token_ids: expected S \+ 1 = 28 ids for inputs of S = 27 positions"),
        ({"layout": Layout([], [], 28)}, ValueError, "layout: expected answer_start of at most 27"),
        ({"method": "no_cam"}, ValueError, "method: expected one of tam, cam, .*, got 'no_cam'"),
        ({"method": 3}, TypeError, "method: expected a name, got int"),
        ({"depth": 2}, ValueError, "depth: expected an option of 'cam', which are: none"),
    ],
)
def test_arguments_are_checked(change, error, message):
    case = golden.decoder("b")
    given = {"model": case.model, "inputs": case.inputs, "layout": case.layout, "token_ids": case.token_ids} | change
    with pytest.raises(error, match=message):
        attribute(**given)


def test_a_model_that_trains_is_refused():
    model = copy.deepcopy(golden.decoder("b").model).train()
    with pytest.raises(ValueError, match="model: expected evaluation mode"):
        Task(model, {}, golden.decoder("b").layout, [1])


def test_a_decoder_without_its_layers_is_refused():
    with pytest.raises(ModelNotSupportedError, match="expected a decoder with a list of its None layers, got Linear"):
        layers_of(torch.nn.Linear(2, 2))


def test_a_text_without_images_has_maps_without_cells():
    case = golden.decoder("b")
    layout = Layout([], case.layout.prompt, case.layout.answer_start)
    for method, options in OURS.items():
        if method != "vision_grad_cam":
            assert attribute(case.model, case.inputs, layout, case.token_ids, method, **options).maps.shape == (4, 0)


# The result and the registry -------------------------------------------------------------------------------------


def test_maps_have_their_grids():
    case = golden.whole("qwen2_vl", images=2)
    found = case.attribute("cam")
    assert (found.method, found.options, found.layout) == ("cam", {}, case.layout)
    first, second = case.layout.grids
    assert torch.equal(found.grid(1), found.maps[1, : len(first)].view(first.shape))
    assert torch.equal(found.grid(-1, 1), found.maps[-1, len(first) :].view(second.shape))
    with pytest.raises(IndexError, match="t: expected a target from 0 to 3, got 4"):
        found.grid(4)
    with pytest.raises(IndexError, match="g: expected a grid from 0 to 1, got 2"):
        found.grid(0, 2)


def test_every_method_says_what_it_is():
    assert set(OURS) <= set(METHODS)
    kinds = [method.kind for method in METHODS.values()]
    assert kinds == sorted(kinds, key=registry.KINDS.index)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source
        assert method.cost
        assert method.needs
    signed = {name for name in OURS if METHODS[name].signed}
    assert signed == {"feature_surgery", "gradient_input", "integrated_gradients"}


def test_signs_are_told_rightly():
    case = golden.whole("qwen2_vl")
    for name, options in OURS.items():
        maps = case.attribute(name, **options).maps
        assert maps.isfinite().all()
        assert maps.any()
        assert bool((maps < 0).any()) == METHODS[name].signed, name


@pytest.fixture
def methods(monkeypatch):
    """A registry of one's own."""
    len(METHODS)
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))


@pytest.mark.usefixtures("methods")
def test_users_register_their_own():
    @register("norm", kind="logit", needs="states", source="ours", cost="1 forward", power=1)
    def norm(task, power=1):
        return task.hidden()[task.visual].norm(dim=1).pow(power).expand(len(task), -1)

    case = golden.decoder("b")
    expected = case["hidden"][case.layout.visual_positions].norm(dim=1)
    found = case.attribute("norm", power=2)
    golden.close(found.maps, expected.square().expand(4, -1))
    assert found.options == {"power": 2}
    assert available(case.model)["norm"] == ""
    with pytest.raises(ValueError, match="name: expected one that is free, got 'norm'"):
        register("norm", kind="logit")
    register("half", kind="logit", needs="states")(lambda task: torch.zeros(len(task), 1))
    with pytest.raises(ValueError, match=r"method: expected maps \(T, N\) = \(4, 18\) from 'half', got \(4, 1\)"):
        case.attribute("half")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "a+b"}, TypeError, r"name: expected a name without '\+'"),
        ({"kind": "magic"}, ValueError, "kind: expected one of logit, gradient, .*, got 'magic'"),
        ({"needs": ["luck"]}, ValueError, "needs: expected some of .*, got luck"),
    ],
)
def test_what_is_registered_is_checked(change, error, message):
    with pytest.raises(error, match=message):
        register(**{"name": "mine", "kind": "logit"} | change)


def test_the_room_names_its_doors():
    assert set(tam_fast.methods.__all__) <= set(dir(tam_fast.methods))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tam_fast.methods.nothing  # noqa: B018


# Nothing stays behind --------------------------------------------------------------------------------------------


def state(model):
    """All that a call could leave on a model."""
    hooks = [
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    weights = [(value.requires_grad, value.grad is None, value._version) for value in model.parameters()]
    own = [sorted(vars(module)) for module in model.modules()]
    configs = [id(module.config) for module in model.modules() if hasattr(module, "config")]
    return hooks, weights, own, configs, model.training, model.config.to_dict()


@pytest.mark.parametrize(("method", "options"), OURS.items())
def test_nothing_stays_on_the_model(method, options):
    case = golden.whole("llava")
    expected = case.attribute(method, **options).maps  # transformers' own hooks come with the first call
    before = state(case.model)
    with torch.inference_mode():
        assert torch.equal(case.attribute(method, **options).maps, expected)
    assert state(case.model) == before
    handle = case.model.model.language_model.layers[-1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        case.attribute(method, **options)
    handle.remove()
    assert state(case.model) == before
    assert torch.is_grad_enabled()


def test_threads_do_not_see_each_other():
    case = golden.whole("llava")
    methods = ["archi_surgery", "layer_cam", "llava_cam", "vision_grad_cam", "gradient_input", "cam"]
    options = {"layer_cam": {"layer": 0}}
    expected = {name: case.attribute(name, **options.get(name, {})).maps for name in methods}
    before, found = state(case.model), {}
    gate = threading.Barrier(len(methods))

    def run(name):
        gate.wait()
        found[name] = [case.attribute(name, **options.get(name, {})).maps for _ in range(3)]

    threads = [threading.Thread(target=run, args=(name,)) for name in methods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in methods:
        assert len(found.get(name, ())) == 3, name
        for maps in found[name]:
            torch.testing.assert_close(maps, expected[name])
    assert state(case.model) == before


def test_embeddings_that_need_a_gradient_stay_as_they_are():
    case = golden.decoder("b")
    embeddings = case.inputs["inputs_embeds"].clone().requires_grad_()
    given = {"inputs_embeds": embeddings}
    for method in ("cam", "gradient_input", "integrated_gradients"):
        found = attribute(case.model, given, case.layout, case.token_ids, method)
        assert torch.equal(found.maps, case.attribute(method).maps)
        assert not found.maps.requires_grad
    assert embeddings.grad is None


def test_inputs_made_in_inference_mode_are_copied():
    case = golden.decoder("b")
    (grid,) = case.layout.grids
    with torch.inference_mode():
        embeddings, ids = case.inputs["inputs_embeds"].clone(), case.token_ids.clone()
        layout = Layout([Grid(grid.positions.clone(), *grid.shape)], case.layout.prompt, case.layout.answer_start)
        first = attribute(case.model, {"inputs_embeds": embeddings}, layout, ids, "grad_cam", layer=0)
    second = attribute(case.model, {"inputs_embeds": embeddings}, layout, ids, "gradient_input")
    assert torch.equal(first.maps, case.attribute("grad_cam", layer=0).maps)
    assert torch.equal(second.maps, case.attribute("gradient_input").maps)


def test_grids_of_any_order_are_read_by_their_positions():
    case = golden.decoder("b")
    (grid,) = case.layout.grids
    turned = Layout([Grid(grid.positions.flip(0), *grid.shape)], case.layout.prompt, case.layout.answer_start)
    for method in ("cam", "gradient_input", "grad_cam"):
        options = {"layer": 0} if method == "grad_cam" else {}
        found = attribute(case.model, case.inputs, turned, case.token_ids, method, **options).maps
        golden.close(found, case.attribute(method, **options).maps.flip(1))


def test_a_method_of_ones_own_comes_behind_those_of_the_library() -> None:
    # In a process of its own, where nobody has asked for the library's yet.
    program = """
from tam_fast.methods import METHODS, register
def one(task): ...
register("own", kind="logit")(one)
names = [name for name, method in METHODS.items() if method.kind == "logit"]
assert names[0] == "tam" and names[-1] == "own", names
"""
    taken = program.replace('register("own"', 'register("cam"').splitlines()[:4]
    program = "\n".join(
        ["try:", *(f" {line}" for line in taken), "except ValueError as error:", " print(error)", program]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "name: expected one that is free, got 'cam'\n"
