"""The training's optimiser of matrices, against torch's."""

from __future__ import annotations

import pytest
import torch

from tam_fast.demo.train.muon import Muon, orthogonalise

SHAPES = ((8, 24), (24, 8), (8, 24), (12, 12))


def _trained(make, steps):
    """Matrices after some steps on fixed gradients, one of which is missing in the second step."""
    generator = torch.Generator().manual_seed(3)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimiser = make(matrices)
    for step in range(steps):
        for number, matrix in enumerate(matrices):
            gradient = torch.randn(matrix.shape, generator=generator)
            matrix.grad = None if (step, number) == (1, 2) else gradient
        optimiser.step()
    return [matrix.detach() for matrix in matrices]


def _torch_muon(matrices):
    return torch.optim.Muon(matrices, lr=0.05, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")


def _ours(matrices):
    return Muon(matrices, lr=0.05, weight_decay=0.2)


def test_steps_are_those_of_torch_in_float32(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    for one, other in zip(_trained(_ours, 4), _trained(_torch_muon, 4), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_steps_are_those_of_torch_but_for_its_bfloat16():
    start = _trained(_ours, 0)
    for before, one, other in zip(start, _trained(_ours, 3), _trained(_torch_muon, 3), strict=True):
        assert (one - other).norm() < 0.02 * (other - before).norm()


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (3, 6, 20)])
def test_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.shape[-1] == 6
    assert 0.6 < values.min() <= values.max() < 1.3


def test_zero_stays_zero_beside_others():
    matrices = torch.stack([torch.zeros(4, 5), torch.randn(4, 5, generator=torch.Generator().manual_seed(2))])
    both = orthogonalise(matrices)
    assert torch.equal(both[0], torch.zeros(4, 5))
    torch.testing.assert_close(both[1], orthogonalise(matrices[1]))


def test_anything_but_matrices_is_refused():
    with pytest.raises(ValueError, match=r"params: expected matrices, got a tensor of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
