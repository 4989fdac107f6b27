"""Lanes of the PTX machine: which of them run, where they meet again, and barriers of blocks."""

from __future__ import annotations

import numpy as np
import pytest

from machines.ptx_kernels import INDEX, execute, faults, launch, module


def test_special_registers_of_grids_in_three_dimensions() -> None:
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%ntid.y", "%nctaid.z", "%laneid"]
    grid, block = (3, 2, 2), (5, 3, 2)
    body = """
        mov.u32 %r1, %ctaid.z; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %ctaid.y; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.z; mov.u32 %r3, %tid.z; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.y; mov.u32 %r3, %tid.y; mad.lo.s32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.s32 %r1, %r1, %r2, %r3;
        ld.param.u64 %rd1, [to]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
    """
    body += "\n".join(f"mov.u32 %r5, {n}; st.global.u32 [%rd1+{i * 360 * 4}], %r5;" for i, n in enumerate(names))
    got = execute(body, grid, block, size=360 * len(names)).reshape(len(names), 2, 2, 3, 2, 3, 5)
    z, y, x, c, b, a = np.meshgrid(*(np.arange(n) for n in (2, 2, 3, 2, 3, 5)), indexing="ij")
    for found, expected in zip(got, (a, b, c, x, y, z, 3 + 0 * a, 2 + 0 * a, (a + 5 * b + 15 * c) % 32), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_loops_of_different_lengths_meet_again() -> None:
    """Collatz: lanes leave a loop at different times and branch within it; all of them shuffle after it."""
    body = (
        INDEX
        + """
        add.s32 %r5, %r4, 1; mov.u32 %r6, 0;
    $loop:
        setp.eq.u32 %p1, %r5, 1; @%p1 bra $done;
        add.s32 %r6, %r6, 1; and.b32 %r7, %r5, 1; setp.eq.u32 %p2, %r7, 0; @%p2 bra $even;
        mad.lo.s32 %r5, %r5, 3, 1; bra.uni $loop;
    $even:
        shr.u32 %r5, %r5, 1; bra.uni $loop;
    $done:
        shfl.sync.idx.b32 %r8, %r6, 0, 31, -1;
        add.s32 %r6, %r6, %r8; st.global.u32 [%rd3], %r6; ret;
    """
    )
    steps = []
    for i in range(1, 641):
        n, value = 0, i
        while value != 1:
            value, n = (value // 2 if value % 2 == 0 else 3 * value + 1), n + 1
        steps.append(n)
    expected = np.array(steps) + np.repeat(np.array(steps)[::32], 32)
    np.testing.assert_array_equal(execute(body, 5, 128), expected)


def test_a_branch_placed_after_the_barrier_is_waited_for() -> None:
    body = (
        INDEX
        + """
        .shared .align 4 .b8 cell[4];
        setp.eq.u32 %p1, %r1, 5; @%p1 bra $cold;
    $join:
        bar.sync 0; ld.shared.u32 %r5, [cell]; st.global.u32 [%rd3], %r5; ret;
    $cold:
        mov.u32 %r6, 17; st.shared.u32 [cell], %r6; bra $join;
    """
    )
    np.testing.assert_array_equal(execute(body, 3, 64), np.full(192, 17))


def test_predicated_instructions_change_only_their_lanes() -> None:
    body = (
        INDEX
        + """
        mov.u32 %r5, 7; setp.lt.u32 %p1, %r1, 10; @%p1 mov.u32 %r5, 1; @!%p1 add.s32 %r5, %r5, %r1;
        @%p1 st.global.u32 [%rd3], %r5; @%p1 ret; st.global.u32 [%rd3], %r5;
    """
    )
    lane = np.arange(40)
    np.testing.assert_array_equal(execute(body, 1, 40), np.where(lane < 10, 1, 7 + lane))


def test_blocks_in_several_batches_and_statistics() -> None:
    to = np.zeros(300 * 128, "u4")
    body = INDEX + "setp.ne.u32 %p1, %r1, 3; @%p1 bra $end; add.s32 %r4, %r4, 1; $end: st.global.u32 [%rd3], %r4; ret;"
    statistics = launch(module(body), 300, 128, to)
    index = np.arange(300 * 128)
    np.testing.assert_array_equal(to, index + (index % 128 == 3))
    assert statistics.opcodes["st.global.u32"] == 300 * 128
    assert statistics.opcodes["add.s32"] == 300
    assert statistics.lanes == sum(statistics.opcodes.values())


def test_barriers_reduce() -> None:
    body = (
        INDEX
        + """
        mov.u32 %r6, %ctaid.x; setp.eq.u32 %p1, %r1, %r6; setp.ge.u32 %p2, %r6, 90;
        bar.red.or.pred %p3, 0, %p1; bar.red.and.pred %p4, 0, !%p2; bar.red.popc.u32 %r9, 0, %p1;
        selp.u32 %r7, 1, 0, %p3; selp.u32 %r8, 2, 0, %p4; or.b32 %r7, %r7, %r8;
        shl.b32 %r9, %r9, 2; or.b32 %r7, %r7, %r9;
        st.global.u32 [%rd3], %r7;
    """
    )
    block = np.repeat(np.arange(100), 64)
    np.testing.assert_array_equal(execute(body, 100, 64), (block < 64) + 2 * (block < 90) + 4 * (block < 64))


def test_lanes_that_exited_do_not_hold_up_a_barrier() -> None:
    body = (
        INDEX
        + """
        setp.ge.u32 %p1, %r1, 96; @%p1 ret; bar.sync 0; st.global.u32 [%rd3], 5;
    """.replace("st.global.u32 [%rd3], 5", "mov.u32 %r5, 5; st.global.u32 [%rd3], %r5")
    )
    got = execute(body, 2, 128).reshape(2, 128)
    assert (got[:, :96] == 5).all()
    assert not got[:, 96:].any()


def test_what_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machines.ptx.batch.ENDLESS", 1000)
    faults("ran 1000 times and does not end", "$again: add.s32 %r5, %r4, 1; bra $again;")


def test_warps_may_come_to_an_instruction_one_part_after_the_other() -> None:
    body = (
        INDEX
        + """
        setp.lt.u32 %p1, %r1, 8; @%p1 bra $cold;
    $join: shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1; st.global.u32 [%rd3], %r6; ret;
    $cold: add.s32 %r4, %r4, 100; bra $join;
    """
    )
    lane = np.arange(32) ^ 1
    np.testing.assert_array_equal(execute(body), lane + 100 * (lane < 8))


def test_barriers_must_complete() -> None:
    faults("divergence: a lane of the warp is at line .* 'bar.sync 0'",
           "setp.lt.u32 %p1, %r1, 8; @%p1 bra $x; bar.sync 0; ret; $x: bar.sync 0; ret;")  # fmt: skip
    faults("deadlock: the barrier waits for lanes of the block, one of which is at line .* 'bar.sync 1'",
           "setp.lt.u32 %p1, %r1, 32; @%p1 bra $x; bar.sync 0; ret; $x: bar.sync 1; ret;")  # fmt: skip
