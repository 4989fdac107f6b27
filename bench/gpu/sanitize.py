"""A small program that runs every kernel once and checks what it made: what compute-sanitizer watches.

python -m bench.gpu.sanitize --backend cuda
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

# Every tensor is an allocation of its own, so that a read or write behind its end is seen.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch
from torch import Tensor

import tam_fast
from bench import ROOT  # noqa: F401  (the tests' helpers can be imported)
from bench.gpu import calls


def run(names: str = "", *, small: bool = False, device: torch.device | None = None) -> int:
    """Run the calls whose names match; returns how many did.

    Raises
    ------
    RuntimeError
        If a result is not that of the same call a second time, or holds no finite value.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    ran = 0
    for call in calls.small(device) if small else calls.every(device):
        if not re.search(names, call.name):
            continue
        began = time.monotonic()
        first = [x.clone() for x in call.run()]
        again = call.run()
        for a, b in zip(first, again, strict=True):
            if not _same(a, b):
                raise RuntimeError(f"{call.name}: expected the same bits twice, got others")
        if not any(bool(torch.isfinite(x.float()).any()) for x in first if x.numel()):
            raise RuntimeError(f"{call.name}: expected finite values, got none")
        ran += 1
        print(f"{call.name}: {time.monotonic() - began:.2f} s", flush=True)
    return ran


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether bits are the same, NaN included."""
    if a.is_floating_point():
        whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        a, b = a.contiguous().view(whole), b.contiguous().view(whole)
    return bool(torch.equal(a, b))


def launched(device: torch.device) -> set[str]:
    """Run every call; returns the names of the kernels that ran on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(device=device)
        torch.cuda.synchronize()
    return {event.key for event in profile.key_averages()}


def compiled(file: str) -> list[str]:
    """Names of the kernels in a compiled module."""
    usage = subprocess.run(["cuobjdump", "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    mangled = "\n".join(sorted(set(re.findall(r"Function (\S+):", usage.stdout))))
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout
    return names.splitlines()


def never(names: Sequence[str], ran: set[str]) -> list[str]:
    """Those of some kernels that did not run; demanglers space names differently."""
    plain = {"".join(name.split()) for name in ran}
    return [name for name in names if "".join(name.split()) not in plain]


def tell_kernels() -> None:
    """Print which of the module's kernels the program runs."""
    from tam_fast import _cuda

    ran = launched(torch.device("cuda", torch.cuda.current_device()))
    if shutil.which("cuobjdump") is None or shutil.which("c++filt") is None:
        print(f"cuobjdump or c++filt is missing; kernels that ran: {len(ran)}")
        return
    names = compiled(str(_cuda.__file__))
    missing = never(names, ran)
    print(
        f"{len(names) - len(missing)} of {len(names)} kernels ran",
        *(f"never ran: {name}" for name in missing),
        sep="\n",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("cuda", "triton"), default="cuda")
    parser.add_argument("--only", default="", metavar="REGEX", help="calls whose names match")
    parser.add_argument("--small", action="store_true", help="each operator once")
    parser.add_argument("--kernels", action="store_true", help="tell which kernels of the module run")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu.sanitize: expected a CUDA device, torch sees none here", file=sys.stderr)
        return 1
    with tam_fast.use_backend(given.backend):
        if given.kernels:
            tell_kernels()
            return 0
        ran = run(given.only, small=given.small)
    torch.cuda.synchronize()
    print(f"{ran} calls on {given.backend}")
    return 0 if ran else 2


if __name__ == "__main__":
    sys.exit(main())
