"""Compile every variant of every Triton kernel that the wrappers launch, without a GPU; for test_triton_aot.py.

The wrappers are run on CPU tensors with their launches recorded instead of made, so the variants are theirs and no list
of them can fall behind. Prints one line of JSON for each variant: kernel, what it was compiled for, and what it takes.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tam_fast.backends import triton as backend
from tam_fast.backends.contracts import DeviceAnswer, DeviceStep
from tam_fast.backends.triton import launch
from tam_fast.backends.triton.kernels import common
from tam_fast.backends.triton.tuning import Tuner

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Variant = tuple[str, tuple[tuple[str, Any], ...], int, int]


def device_answer(targets: int, size: tuple[int, int], dtype: torch.dtype, context: int = 3) -> DeviceAnswer:
    whole, n = torch.zeros(targets, dtype=torch.int64), size[0] * size[1]
    known = torch.zeros(context, dtype=torch.int64)
    return DeviceAnswer(
        torch.zeros(targets, n + context), known, known, whole, whole, whole, whole, [size],
        torch.zeros((targets, n), dtype=dtype), torch.zeros(targets, context), torch.zeros(targets),
        torch.zeros(targets, dtype=torch.bool),
    )  # fmt: skip


def device_step(states: torch.Tensor, classifier: torch.Tensor) -> DeviceStep:
    integers = torch.zeros(8, dtype=torch.int64)
    return DeviceStep(
        states, integers, states, classifier, torch.zeros(4, 16), integers[:4], integers, integers, integers[:3],
        [(2, 2)], 4, torch.zeros(1, dtype=torch.int32), torch.zeros(1, 4), torch.zeros(1, 8), torch.zeros(1),
        torch.zeros(1, dtype=torch.bool),
    )  # fmt: skip


def launch_everything() -> None:
    """Call the wrappers with every dtype, window and bucket that leads to another variant."""
    for kernel_size, dtype in itertools.product(range(1, 16, 2), DTYPES):
        backend.rank_gaussian_filter([torch.zeros(1, 3, 3, dtype=dtype)], kernel_size)
    # So many pixels that lanes have several columns; one map stands for all.
    for dtype, maps in itertools.product(DTYPES[:3], (4096, 8192)):
        backend.rank_gaussian_filter([torch.zeros(1, 32, 32, dtype=dtype).expand(maps, 32, 32)], 3)
    ids, some, more, many = (torch.zeros(count, dtype=torch.int64) for count in (1, 20, 40, 300))
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        pairs = [(a, b) for a in DTYPES for b in DTYPES if a == b or torch.float32 in (a, b)]
        for (read, weight), channels in itertools.product(pairs, (16, 15)):
            if precision == "high" and (read, weight) != (torch.float32, torch.float32):
                continue
            states, classifier = torch.zeros(4, channels, dtype=read), torch.zeros(4, channels, dtype=weight)
            backend.token_scores([states], classifier, [ids])
            if read == weight:
                for classes in (some, more):
                    backend.token_scores([states], classifier, [classes])
                answer = device_answer(5, (2, 2), torch.float32)
                answer.context_rows = answer.context_rows[:0]
                made = backend.ContextStates(states, ids.expand(4).contiguous(), classifier, ids.expand(3).contiguous())
                backend.answer_maps([answer], 1, states=[made])
                backend.token_scores([torch.zeros(5000, channels, dtype=read)], classifier, [many])
                backend.step_answer(device_step(states, classifier), 1)
    for dtype in DTYPES:
        backend.least_squares_scale(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype))
    backend.estimated_causal_inference([torch.zeros(2, 3)], [torch.zeros(4, 3)], [torch.zeros(2, 4)])
    for side, targets, maps in itertools.product((4, 150), (1, 5), (torch.float32, torch.uint8)):
        for kernel_size in (1, 3, 5, 7, 9, 13):
            backend.answer_maps([device_answer(targets, (side, side), maps)], kernel_size)


def variants(architecture: int) -> set[Variant]:
    """Record the launches of the wrappers on some architecture."""
    found: set[Variant] = set()

    def record(kernel: Any, programs: int, configuration: Any, *arguments: int, **constants: Any) -> None:
        assert programs > 0
        assert len(arguments) + len(constants) + len(configuration.blocks) == len(kernel.arg_names)
        everything = tuple(sorted({**constants, **configuration.blocks}.items()))
        found.add((kernel.__name__, everything, configuration.warps, configuration.stages))

    tuner = Tuner(f"sm_{architecture}")
    launch.on = lambda device: nullcontext()  # type: ignore[assignment]
    launch.tuner = lambda: tuner
    launch._capturing = lambda: False
    launch.one = record
    launch_everything()
    return found


def resources(binary: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found is not None, text
    return dict(zip(("registers", "stack", "shared", "local"), map(int, found.groups()), strict=True))


def main(architecture: int) -> None:
    for name, constants, warps, stages in sorted(variants(architecture), key=str):
        kernel = common.KERNELS[name]
        values = dict(constants)
        signature = {argument: "constexpr" if argument in values else "i64" for argument in kernel.arg_names}
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        source = ASTSource(kernel, signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        shown = {key: str(value) for key, value in (*constants, ("warps", warps), ("stages", stages))}
        taken = {**resources(compiled.asm["cubin"]), "dynamic": compiled.metadata.shared}
        print(json.dumps({"kernel": name, "variant": shown, "resources": taken}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
