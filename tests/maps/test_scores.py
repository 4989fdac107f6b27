"""Scores: which backend keeps tensors on their device, and what it says of tensors that it cannot read."""

from __future__ import annotations

import pytest
import torch
from answers import Case

import tam_fast
from tam_fast.backends import selection
from tam_fast.maps.scores import resident_for


class Subclass(torch.Tensor):
    """Keeps its values elsewhere, for all that a kernel knows."""


@pytest.fixture
def device_backend(monkeypatch: pytest.MonkeyPatch) -> object:
    backend = object()
    monkeypatch.setattr(selection, "resident", lambda device, name=None: backend)
    return backend


def test_a_plain_classifier_stays_on_its_device(device_backend: object) -> None:
    assert resident_for(torch.zeros(2, 3), None) is device_backend
    assert resident_for(torch.nn.Parameter(torch.zeros(2, 3)), "cuda") is device_backend


def test_a_subclass_is_worked_on_by_the_cpu_where_nobody_asked_for_a_device(device_backend: object) -> None:
    assert resident_for(torch.zeros(2, 3).as_subclass(Subclass), None) is None


@pytest.mark.parametrize("by", ["backend", "use_backend", "TAM_FAST_BACKEND"])
def test_a_subclass_is_the_reason_that_is_given(
    device_backend: object, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cuda" if by == "backend" else None
    if by == "use_backend":
        monkeypatch.setattr(selection, "_forced", ("cuda", by))
    elif by == "TAM_FAST_BACKEND":
        monkeypatch.setenv(by, "cuda")
    words = rf"classifier: expected a torch.Tensor, which cuda can read \({by}\), got its subclass Subclass"
    case = Case([(2, 3)])
    weight = case.classifier.as_subclass(Subclass)
    with pytest.raises(TypeError, match=words):
        tam_fast.activation_maps(case.hidden, weight, case.token_ids, case.layout, backend=name)
    with pytest.raises(TypeError, match=words):
        tam_fast.ActivationMapStream(weight, case.layout, case.token_ids[: case.answer_start], backend=name)
