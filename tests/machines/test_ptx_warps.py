"""Warps of the PTX machine: shuffles, votes, reductions, matrices and tensor cores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from machines.ptx_kernels import INDEX, bits_of, execute, faults


@pytest.mark.parametrize(
    "mode, by, clamp, other",
    [
        ("bfly", 5, 31, lambda i: i ^ 5),
        ("bfly", 8, 0x181F, lambda i: i ^ 8),
        ("down", 3, 31, lambda i: i + 3 if i + 3 < 32 else i),
        ("up", 3, 0, lambda i: i - 3 if i >= 3 else i),
        ("idx", 3, 0x1C1F, lambda i: i // 4 * 4 + 3),
        ("down", 1, 0x1C1F & ~0x3 | 3, lambda i: i + 1 if i % 4 < 3 else i),
    ],
)
def test_shuffles(mode: str, by: int, clamp: int, other) -> None:
    body = (
        INDEX
        + f"""
        mul.lo.s32 %r5, %r4, 7; shfl.sync.{mode}.b32 %r6|%p1, %r5, {by}, {clamp}, -1;
        selp.u32 %r7, 1, 0, %p1; shl.b32 %r7, %r7, 16; or.b32 %r6, %r6, %r7; st.global.u32 [%rd3], %r6;
    """
    )
    segment, top = clamp >> 8, clamp & 31
    expected = []
    for i in range(128):
        lane = i % 32
        origin, last = other(lane), (lane & segment) | (top & ~segment)
        target = {"bfly": lane ^ by, "down": lane + by, "up": lane - by, "idx": (lane & segment) | (by & ~segment)}[
            mode
        ]
        inside = target >= last if mode == "up" else target <= last
        origin = target if inside else lane
        expected.append((i - lane + origin) * 7 + (inside << 16))
    np.testing.assert_array_equal(execute(body, 2, 64), expected)


def test_shuffles_by_registers_in_part_of_a_warp() -> None:
    body = (
        INDEX
        + """
        setp.ge.u32 %p1, %r1, 16; @%p1 bra $end; xor.b32 %r5, %r1, 9;
        shfl.sync.idx.b32 %r6, %r4, %r5, 31, 0xffff; st.global.u32 [%rd3], %r6;
    $end: ret;
    """
    )
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(execute(body, 2, 32), np.where(lane < 16, np.arange(64) // 32 * 32 + (lane ^ 9), 0))


def test_reductions_and_votes() -> None:
    values = bits_of("s32", 64)
    start = INDEX + "ld.param.u64 %rd5, [from0]; add.s64 %rd6, %rd5, %rd2; ld.global.b32 %r5, [%rd6];"
    rows = values.reshape(2, 32)
    expectations = {"max.s32": rows.max(1), "min.s32": rows.min(1), "add.s32": rows.sum(1, dtype="i4")}
    expectations.update({"max.u32": rows.view("u4").max(1), "xor.b32": np.bitwise_xor.reduce(rows, axis=1)})
    for name, expected in expectations.items():
        body = start + f"redux.sync.{name} %r6, %r5, -1; st.global.u32 [%rd3], %r6;"
        got = execute(body, 1, 64, inputs=(values,))
        np.testing.assert_array_equal(got, np.repeat(expected, 32).astype("u4" if "u" in name else "i4").view("u4"))
    part = (
        start
        + """
        setp.ge.u32 %p1, %r1, 8; @%p1 ret; redux.sync.max.s32 %r6, %r5, 255; st.global.u32 [%rd3], %r6;
    """
    )
    np.testing.assert_array_equal(execute(part, 1, 32, inputs=(values,))[:8], np.full(8, values[:8].max()).view("u4"))
    vote = (
        start
        + """
        setp.lt.s32 %p1, %r5, 0; vote.sync.ballot.b32 %r6, %p1, -1; vote.sync.any.pred %p2, %p1, -1;
        vote.sync.all.pred %p3, !%p1, -1; @%p3 mov.u32 %r6, 0; @!%p2 mov.u32 %r6, 0; st.global.u32 [%rd3], %r6;
    """
    )
    ballot = [sum(int(v < 0) << i for i, v in enumerate(row)) for row in rows]
    np.testing.assert_array_equal(execute(vote, 1, 64, inputs=(values,)), np.repeat(ballot, 32))
    active = INDEX + "setp.lt.u32 %p1, %r1, 4; @%p1 bra $x; activemask.b32 %r5; st.global.u32 [%rd3], %r5; $x: ret;"
    assert execute(active)[7] == 0xFFFFFFF0


def test_warps_must_be_together() -> None:
    split = "setp.lt.u32 %p1, %r1, 8; @%p1 bra $x;"
    faults("divergence: it waits for lanes of the warp, one of which is at line .* 'bar.sync 0'",
           split + "shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1; ret; $x: bar.sync 0; ret;")  # fmt: skip
    faults(
        r"thread \(16, 0, 0\): the lane is not among those that it names, 0x0000ffff",
        "shfl.sync.bfly.b32 %r6, %r4, 1, 31, 0xffff;",
    )
    faults(
        "reads lane 9, which is not there",
        "setp.ge.u32 %p1, %r1, 8; @%p1 bra $x; mov.u32 %r5, 9; shfl.sync.idx.b32 %r6, %r4, %r5, 31, 0xff; $x: ret;",
    )
    faults("lanes 0x000000ff of the warp do not exist or exited",
           ".shared .align 16 .b8 block[512]; setp.lt.u32 %p1, %r1, 8; @%p1 ret; mov.u32 %r5, block;"
           "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r5];", block=32)  # fmt: skip
    faults("do not exist", "mov.u32 %r5, 1024; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r5];", block=16)
    faults(
        "lanes of one warp name different lanes",
        "setp.lt.u32 %p1, %r1, 8; selp.b32 %r5, 0xff, 0xffffffff, %p1; redux.sync.max.u32 %r6, %r4, %r5;",
    )


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Matrix i is 8 rows of 16 bytes, whose addresses lanes 8i to 8i + 7 hold; rows are stored in another order."""
    source = np.random.default_rng(0).integers(0, 65536, (2, 8 * 4, 8)).astype("u2")
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    stores = " ".join(f"st.global.u32 [%rd3+{256 * i}], %r{20 + i};" for i in range(count))
    body = (
        INDEX
        + f"""
        .shared .align 16 .b8 block[1024];
        ld.param.u64 %rd5, [from0]; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd5, %rd6;
        ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%rd7]; mov.u32 %r5, block; shl.b32 %r6, %r1, 4;
        xor.b32 %r7, %r6, 48; add.s32 %r7, %r5, %r7; st.shared.v4.u32 [%r7], {{%r10, %r11, %r12, %r13}};
        bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{registers}}}, [%r7]; {stores}
    """
    )
    aligned = np.zeros(1024 + 16, "u1")
    begin = -aligned.ctypes.data % 16
    inside = aligned[begin : begin + 1024]
    inside[:] = source.reshape(-1).view("u1")
    got = execute(body, 1, 64, size=64 * 4, inputs=(inside,)).reshape(4, 2, 32)
    matrices = source.reshape(2, 4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    for lane in range(32):
        for matrix in range(count):
            pair = matrices[:, matrix, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].astype("u4")
            np.testing.assert_array_equal(got[matrix, :, lane], pair[:, 0] | pair[:, 1] << 16)


def plain_fragments(shape: str, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The words of A's, B's and C's registers for every lane, as the PTX ISA draws them."""
    words = np.zeros((32, 10), "u4")
    for lane in range(32):
        g, t = divmod(lane, 4)
        if kind == "tf32":
            parts = [a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4], b[t, g], b[t + 4, g]]
            words[lane, :6] = np.array(parts, "f4").view("u4")
        else:
            rows = [a[g, 2 * t :], a[g + 8, 2 * t :], a[g, 2 * t + 8 :], a[g + 8, 2 * t + 8 :]]
            columns = [b[2 * t :, g], b[2 * t + 8 :, g]]
            words[lane, :6] = [int(x[0]) | int(x[1]) << 16 for x in (*rows, *columns)]
        words[lane, 6:] = np.array([c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1]], "f4").view(
            "u4"
        )
    return words


def multiply(shape: str, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A * B + C by one mma; halves are passed as their bits."""
    words = plain_fragments(shape, kind, a, b, c)
    loads = " ".join(f"ld.global.u32 %r{10 + i}, [%rd7+{4 * i}];" for i in range(10))
    body = (
        INDEX
        + f"""
        ld.param.u64 %rd5, [from0]; mul.wide.u32 %rd6, %r4, 40; add.s64 %rd7, %rd5, %rd6; {loads}
        mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{%r20, %r21, %r22, %r23}},
            {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{%r16, %r17, %r18, %r19}};
        mul.wide.u32 %rd6, %r4, 16; add.s64 %rd1, %rd1, %rd6; st.global.u32 [%rd1], %r20;
        st.global.u32 [%rd1+4], %r21; st.global.u32 [%rd1+8], %r22; st.global.u32 [%rd1+12], %r23;
    """
    )
    got = execute(body, 1, 32, "f4", 128, (words,)).reshape(32, 4)
    result = np.zeros((16, 8), "f4")
    for lane in range(32):
        g, t = divmod(lane, 4)
        result[g, 2 * t : 2 * t + 2], result[g + 8, 2 * t : 2 * t + 2] = got[lane, :2], got[lane, 2:]
    return result


def half_bits(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """x in a narrow type: what a register holds, and its value."""
    if kind == "tf32":
        return x.astype("f4"), (x.astype("f4").view("u4") & 0xFFFFE000).view("f4").astype("f8")
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    narrow = torch.from_numpy(x.copy()).to(dtype)
    return narrow.view(torch.int16).numpy().view("u2"), narrow.to(torch.float64).numpy()


@pytest.mark.parametrize("shape, kind, k", [("m16n8k16", "f16", 16), ("m16n8k16", "bf16", 16), ("m16n8k8", "tf32", 8)])
def test_mma_multiplies_matrices(shape: str, kind: str, k: int) -> None:
    random = np.random.default_rng(1)
    (a, a_value), (b, b_value) = (half_bits(random.standard_normal(size), kind) for size in ((16, k), (k, 8)))
    c = random.standard_normal((16, 8)).astype("f4")
    got, exact = multiply(shape, kind, a, b, c), a_value @ b_value + c
    sizes = np.abs(a_value) @ np.abs(b_value) + np.abs(c)
    assert (np.abs(got - exact) <= sizes * 2.0**-22).all()
    assert (got != exact.astype("f4")).any()  # it does not round


def test_mma_cuts_off_as_tensor_cores_do() -> None:
    """What lies 26 bits below the largest addend of a group is lost, and sums are cut off, not rounded."""
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    a[0, :] = 1
    c[0, :] = 1
    b[:8, 0] = 2.0**-14 * 2.0**-10  # eight addends of 2**-24 and together 2**-21: kept by the two further bits
    b[8:, 1] = 2.0**-14 * 2.0**-9
    b[0, 2], b[1, 2] = 2.0**-24, 2.0**-24  # 2**-23: the last bit
    a[4, :], c[4, :], b[0, 3] = 0.5, 1, 3 * 2.0**-24  # three quarters of an ulp: cut off
    b[0, 4] = -(2.0**-24)
    a[1, :8] = 2.0**-12
    c[1, :] = 1
    b[:8, 5] = 2.0**-14  # products of 2**-26 each: all lost, though together they are an ulp and more
    got = multiply("m16n8k16", "f16", half_bits(a, "f16")[0], half_bits(b, "f16")[0], c)
    assert got[0, [0, 1, 2, 4]].tolist() == [1 + 2.0**-21, 1 + 2.0**-20, 1 + 2.0**-23, 1 - 2.0**-24]
    assert got[4, 3] == 1
    assert got[1, 5] == 1


def test_mma_of_what_is_not_finite() -> None:
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
    a[0, 0], a[1, 9], a[2, 3] = np.inf, np.nan, 1
    b[:, 0], c[3, 0] = 1, -np.inf
    got = multiply("m16n8k16", "bf16", half_bits(a, "bf16")[0], half_bits(b, "bf16")[0], c)
    assert np.array_equal(got[:4, 0], np.array([np.inf, np.nan, 1, -np.inf], "f4"), equal_nan=True)
    assert np.isnan(got[0, 1])
    assert got[1, 1:].view("u4").tolist() == [0x7FFFFFFF] * 7
