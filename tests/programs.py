"""Long programs that tests wait for: they start when tests are collected and run beside the tests before theirs.

@pytest.mark.program("-m", "pytest", ..., environment={...})
def test_something(program: subprocess.CompletedProcess[str]) -> None: ...
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from places import TESTS


def check_tests(program: subprocess.CompletedProcess[str], at_least: int) -> None:
    """Check that a run of pytest passed that many tests, and skipped none."""
    assert program.returncode == 0, program.stdout[-8000:] + program.stderr[-2000:]
    summary = program.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) >= at_least, summary
    assert "skipped" not in summary


class Programs:
    """Python programs, one after the other in the order of their tests, in a thread that waits for them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="programs")
        self._futures: dict[str, Future[subprocess.CompletedProcess[str]]] = {}
        self._running: subprocess.Popen[str] | None = None

    def add(self, test: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """Let a program run for a test: Python with some arguments, with caches of its own for what Triton compiles."""
        self._futures[test] = self._pool.submit(self._run, arguments, environment)

    def result(self, test: str) -> subprocess.CompletedProcess[str]:
        """Wait for the program of a test."""
        return self._futures[test].result()

    def close(self) -> None:
        """Stop what nobody waits for any longer."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._running is not None:
            self._running.kill()

    def _run(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as cache:
            kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
            caches = {"TRITON_CACHE_DIR": cache, "TAM_FAST_CACHE": str(Path(cache) / "tam_fast")}
            self._running = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**kept, **caches, **environment},
                cwd=TESTS,
            )
            output, errors = self._running.communicate()
            return subprocess.CompletedProcess(arguments, self._running.returncode, output, errors)
