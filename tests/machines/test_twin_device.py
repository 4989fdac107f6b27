"""The device that tests of emulated and interpreted kernels work on refuses what a GPU refuses."""

from __future__ import annotations

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("used where there is no GPU, and would take its place in torch", allow_module_level=True)

from machines.twin_device import DEVICE, TwinTensor


def test_tensors_go_there_and_back() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    there = x.to(DEVICE)
    assert there.device == DEVICE
    assert isinstance(there, TwinTensor)
    assert not there.is_cpu
    assert type(there.cpu()) is torch.Tensor
    assert torch.equal(there.cpu(), x)
    assert there.tolist() == x.tolist()
    assert there[1, 2].item() == 6.0


def test_results_stay_there_and_views_share_memory() -> None:
    x = torch.zeros(3, 4, device=DEVICE)
    for made in (x + 1, x @ x.T, torch.empty_like(x), x.new_empty(2), x.half(), torch.arange(4, device=DEVICE)):
        assert made.device == DEVICE
        assert isinstance(made, TwinTensor)
    assert torch.arange(4, device=DEVICE).tolist() == [0, 1, 2, 3]
    view = x[1:, 2:]
    assert view.data_ptr() == x.data_ptr() + 4 * 6
    view.copy_(torch.ones(2, 2))
    x[0] = 5
    assert x.sum().item() == 24.0
    linear = torch.nn.Linear(4, 5).to(DEVICE)
    assert linear(x).device == DEVICE


def test_what_a_gpu_refuses() -> None:
    x, on_cpu = torch.ones(3, 4, device=DEVICE), torch.ones(3, 4)
    with pytest.raises(RuntimeError, match="not supported"):
        x.numpy()
    for mix in (lambda: x + on_cpu, lambda: torch.cat([x, on_cpu]), lambda: x @ on_cpu.T, lambda: on_cpu.mul_(x)):
        with pytest.raises(RuntimeError, match=f"expected all tensors on {DEVICE}, got one on cpu"):
            mix()
    with pytest.raises(RuntimeError, match="expected all tensors"):
        on_cpu[torch.tensor([0, 2]).to(DEVICE)]


def test_what_a_gpu_takes_from_the_cpu() -> None:
    x = torch.ones(3, 4, device=DEVICE)
    assert (x * torch.tensor(2.0)).device == DEVICE
    assert x[torch.tensor([0, 2])].shape == (2, 4)
    x.copy_(torch.zeros(3, 4))
    assert x.sum().item() == 0.0
