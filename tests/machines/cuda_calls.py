"""What the tests of the CUDA kernels need to call one: tensors as they are, on the module's device, and addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from machines.cuda_modules import Target, load


class Cuda(Target):
    """A compiled module, for a GPU or emulated, and the device its tensors lie on."""

    @classmethod
    def named(cls, name: str) -> Cuda:
        """Return the module that a name of ``machines.cuda_modules.TARGETS`` stands for."""
        target = load(name)
        return cls(target.module, target.device)

    def put(self, x: Any, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on the device, with its strides and its offset from an aligned address."""
        x = torch.as_tensor(x, dtype=dtype)
        if x.device == self.device:
            return x
        whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        return whole.to(self.device).as_strided(x.shape, x.stride(), x.storage_offset())

    def dtype(self, x: Tensor) -> int:
        """The module's code of the tensor's dtype."""
        m = self.module
        codes = {torch.float32: m.F32, torch.float16: m.F16, torch.bfloat16: m.BF16, torch.float64: m.F64}
        return int(codes[x.dtype])

    def matrix(self, x: Tensor) -> tuple[int, ...]:
        """(address, dtype, rows, columns, row stride, column stride)."""
        return (x.data_ptr(), self.dtype(x), *x.shape, *x.stride())

    def wait(self) -> None:
        """Until all launches are done."""
        if not self.emulated:
            torch.cuda.synchronize(self.device)

    def set_seed(self, seed: int) -> None:
        """Run threads and blocks in another order; a GPU has its own."""
        if self.emulated:
            self.module.set_seed(seed)
