"""What a machine has of that which a visit needs, and whether the installed package is whole.

python -m bench.gpu.found [--installed]
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import shutil
import subprocess
import sys

PACKAGES = (
    "torch", "triton", "numpy", "pybind11", "scikit_build_core", "pytest", "hypothesis", "transformers", "typer",
    "rich", "safetensors", "PIL", "scipy", "cupy", "kornia",
)  # fmt: skip
PROGRAMS = ("nvcc", "c++", "cmake", "ninja", "nvidia-smi", "compute-sanitizer", "cuobjdump", "c++filt")


def describe() -> None:
    """Name versions, and what is missing."""
    print(f"python {platform.python_version()} {sys.executable}", flush=True)
    for program in PROGRAMS:
        print(f"{program} {shutil.which(program) or 'MISSING'}")
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            print(f"{package} MISSING")
            continue
        try:
            print(f"{package} {getattr(importlib.import_module(package), '__version__', '?')}")
        except Exception as error:  # a broken installation is what is looked for
            print(f"{package} BROKEN: {type(error).__name__}: {error}".splitlines()[0])
    sys.stdout.flush()
    for command in (["nvidia-smi"], ["nvcc", "--version"]):
        if shutil.which(command[0]):
            subprocess.run(command, check=False, timeout=60)


def check_installed() -> None:
    """Run one operator by each backend of the GPU.

    Raises
    ------
    RuntimeError
        If the compiled modules are not those of a GPU, or an operator is wrong.
    """
    import torch

    import tam_fast
    from tam_fast import _C, _cuda

    print(_C.__file__, _cuda.__file__, sep="\n")
    if _cuda.emulated:
        raise RuntimeError("tam_fast._cuda: expected kernels for a GPU, got emulated ones")
    print(json.dumps(tam_fast.backend_info(), indent=1))
    maps = torch.rand(2, 9, 9)
    expected = tam_fast.rank_gaussian_filter(maps)
    for backend in ("cuda", "triton"):
        off = float((tam_fast.rank_gaussian_filter(maps.cuda(), backend=backend).cpu() - expected).abs().max())
        print(f"{backend}: off by {off:.1e}")
        if not off <= 2e-6:
            raise RuntimeError(f"{backend}: expected at most 2e-6 off, got {off:g}")


if __name__ == "__main__":
    check_installed() if "--installed" in sys.argv[1:] else describe()
