"""A machine for PTX: compiled CUDA and Triton kernels run on host memory, checked as compute-sanitizer would check.

    module = Module(text)
    with Memory.recording() as memory:
        ...                                       # torch operations on CPU tensors, which the kernel may then touch
        module.kernels[name].launch(grid, block, parameters, shared_bytes=1024, memory=memory)

Lanes of many blocks run together, as arrays with one element for each lane, and always those at the smallest address
in the program, so that what diverged meets again as structured code means it to. Faults, beyond wrong addresses: shared
memory read before it was written or while a copy to it is in flight, shared memory touched by two warps between
barriers of which one writes (unless both write the same), warps that are not together where they must be, barriers that
never complete, registers read before they were written. Kernels that pass need not be right: neither races for global
memory are seen, nor those among the lanes of one warp.
"""

from machines.ptx.faults import Fault
from machines.ptx.memory import Memory
from machines.ptx.module import Kernel, Module, Statistics

__all__ = ["Fault", "Kernel", "Memory", "Module", "Statistics"]
