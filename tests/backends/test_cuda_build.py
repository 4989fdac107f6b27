"""The CUDA kernels as compiled by nvcc: no memory but registers, and how many instructions the filter takes."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from machines import cuda_modules
from places import ROOT

ARCHITECTURES = ("80", "90", "100")
KERNELS = sorted(path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


@functools.cache
def cuobjdump() -> str:
    """Path of the tool that reads machine code: the toolkit's or the one inside Triton."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        inside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(inside) if inside.is_file() else None
    if found is None:
        pytest.skip("needs cuobjdump, of the CUDA toolkit or of Triton")
    return found


@functools.cache
def cubin(kernel: str, architecture: str) -> Path:
    """Machine code of a .cu file, compiled unless these very sources' lies in the cache."""
    assert NVCC is not None
    folder = cuda_modules.cache_folder("nvcc " + NVCC)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{Path(kernel).stem}-{architecture}.cubin"
    if not path.is_file():
        csrc = ROOT / "csrc"
        unfinished = path.with_suffix(".part")
        done = subprocess.run(
            [
                *(NVCC, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{architecture}", "-Werror=all-warnings"),
                *("-I", str(csrc / "include"), "-I", str(csrc / "cuda"), str(csrc / "cuda" / kernel)),
                *("-o", str(unfinished)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-8000:]
        unfinished.rename(path)
    return path


def dump(option: str, path: Path) -> str:
    return subprocess.run([cuobjdump(), option, str(path)], capture_output=True, text=True, check=True).stdout


@pytest.mark.long
@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_uses_local_memory(kernel: str, architecture: str) -> None:
    text = dump("--dump-resource-usage", cubin(kernel, architecture))
    usage = re.findall(r"Function (\S+):\s+(REG:.*)", text)
    assert usage
    for function, figures in usage:
        numbers = {key: int(value) for key, value in re.findall(r"(STACK|LOCAL):(\d+)", figures)}
        assert numbers["STACK"] == 0, function
        assert numbers["LOCAL"] == 0, function


def test_every_operator_has_a_kernel_file() -> None:
    assert {"rank_gaussian_filter.cu", "finish_maps.cu"} <= set(KERNELS)
    text = (ROOT / "csrc" / "CMakeLists.txt").read_text()
    listed = re.search(r"set\(TAM_CUDA_OPS \$\{TAM_OPS\} (.*?)\)", text)
    common = re.search(r"set\(TAM_OPS (.*?)\)", text)
    assert listed is not None
    assert common is not None
    assert sorted(f"{name}.cu" for name in f"{common[1]} {listed[1]}".split()) == KERNELS


Instruction = tuple[int, str]


def functions(path: Path) -> dict[str, list[Instruction]]:
    """Address and text of every instruction of every kernel."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in dump("-sass", path).splitlines():
        if name := re.search(r"Function : (\S+)", line):
            current = found.setdefault(name[1], [])
        elif instruction := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", line):
            current.append((int(instruction[1], 16), instruction[2]))
    return found


def loops(instructions: list[Instruction]) -> list[list[str]]:
    """Bodies of the loops: from where a branch leads back to, up to the branch."""
    found = []
    for address, text in instructions:
        back = re.search(r"\bBRA(?:\.\S+)?\s+(?:\S+,\s*)?(?:`\(\S+\)|(0x[0-9a-f]+))", text)
        if back is not None and back[1] is not None and int(back[1], 16) < address:
            found.append([body for at, body in instructions if int(back[1], 16) <= at <= address])
    return found


def opcodes(body: list[str]) -> Counter[str]:
    return Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in body)


# Instructions a pixel of the main loop; measured 3 less. On an H100 about 130 (float32) and 88 (16 bits) take as long
# as copying a pixel does at 60 % and 45 % of the copy bandwidth.
MOST_INSTRUCTIONS = {"f": 80, "6__half": 77, "13__nv_bfloat16": 77}
PIXELS = 16  # of a round: four columns of two rows, twice


@pytest.mark.long
@needs_nvcc
@pytest.mark.parametrize("storage", MOST_INSTRUCTIONS)
def test_instructions_a_pixel(storage: str, record_property: pytest.RecordProperty) -> None:
    kernels = functions(cubin("rank_gaussian_filter.cu", "90"))
    (name,) = [name for name in kernels if f"filter_3_kernelI{storage}Li1E" in name]
    wide = "STG.E.128" if storage == "f" else "STG.E.64"
    bodies = [body for body in loops(kernels[name]) if sum(wide in text for text in body) == 4]
    assert bodies, "the loop that stores four rows of four columns"
    body = min(bodies, key=len)
    counts = opcodes(body)
    comparisons = (counts["FMNMX"] + counts["HMNMX2"]) / PIXELS
    report = f"{len(body) / PIXELS:.1f} instructions a pixel, {comparisons:.1f} of them min or max: {dict(counts)}"
    record_property(f"rank_gaussian_filter {storage}", report)
    print(report)
    assert len(body) / PIXELS <= MOST_INSTRUCTIONS[storage], report
    assert counts["MUFU"] == 3 * PIXELS, report
    loads = [text for text in body if "LDG" in text]
    assert len(loads) == 12, loads  # of each row one wide load and two neighbours


# ------------------------------------------------------------------------------------------------------ the emulation


def test_the_emulation_reports_planted_faults() -> None:
    # Missing barriers, divergent warps, copies that nobody waited for: csrc/tests/test_cuda_emulation.cpp plants them.
    program = cuda_modules.emulation_folder() / "test_cuda_emulation"
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_modules_say_what_they_are() -> None:
    from tam_fast import __version__

    emulated = cuda_modules.emulation()
    assert emulated.emulated
    assert emulated.architectures() == []
    assert emulated.__version__ == __version__
    assert (emulated.F32, emulated.F16, emulated.BF16, emulated.F64, emulated.U8) == (0, 1, 2, 3, 4)
    assert (emulated.FINISH_MAPS, emulated.FINISH_CAUSAL) == (0, 1)


@pytest.mark.long
@needs_nvcc
@pytest.mark.parametrize(
    ("capabilities", "options", "built", "why"),
    [
        (None, [], set(), "no GPU was visible when it was built"),
        ("8.6\n9.0\n8.6", [], {"86", "90"}, ""),
        ("9.0\n7.5", [], {"90"}, ""),
        ("7.5", [], set(), "expected a GPU of compute capability 8.0 or later when it was built, got 7.5"),
        ("9.0", ["-DCMAKE_CUDA_ARCHITECTURES=80-real"], {"80"}, ""),
        (None, ["-DTAM_FAST_CUDA=ON"], {"80", "90", "100"}, ""),
        ("9.0", ["-DTAM_FAST_CUDA=OFF"], set(), "TAM_FAST_CUDA=OFF"),
    ],
)
def test_which_architectures_are_built(
    capabilities: str | None, options: list[str], built: set[str], why: str, tmp_path: Path
) -> None:
    pybind11 = importlib.util.find_spec("pybind11")
    if pybind11 is None or pybind11.origin is None or shutil.which("cmake") is None:
        pytest.skip("configuring needs cmake and pybind11, which the extra 'test' installs")
    # As the tool of a machine with these GPUs, or of one whose driver finds none.
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + ("exit 9\n" if capabilities is None else f"printf '{capabilities}'\n"))
    tool.chmod(0o755)
    build = tmp_path / "build"
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(build), *options, f"-DPython_EXECUTABLE={sys.executable}"),
        f"-Dpybind11_DIR={Path(pybind11.origin).parent / 'share' / 'cmake' / 'pybind11'}",
    ]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(2):  # a second configuration must not take a default of the first for what was asked for
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        said = re.findall(r"Without CUDA kernels: (.*)", done.stdout)
        assert said == ([why] if why else [])
        flags = "".join(path.read_text() for path in build.rglob("flags.make"))
        assert set(re.findall(r"code=\[(?:compute_\d+,)?sm_(\d+)\]", flags)) == built
