"""Sets of files: all new or all old, wherever the system fails; whose a file is; names that are too long."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explanations import assert_same, make_explanation
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tam_fast.explanation import load
from tam_fast.explanation.replacing import PICTURE_MARK, check_replaceable, fitting_stem, is_ours, replace_files

NAMES = ("a.safetensors", "a.png", "a.json")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Failing:
    """Lets a function of the system fail at its n-th call, as often as it is tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int, error: BaseException) -> None:
        self.calls = 0
        original = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == at + 1:
                raise error
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, call)


FULL = OSError(errno.ENOSPC, "No space left on device")
STEPS = [
    *((os, "open", at) for at in range(3)),
    *((os, "fsync", at) for at in range(3)),
    *((os, "link", at) for at in range(3)),
    *((Path, "replace", at) for at in range(3)),
]


@pytest.mark.parametrize("old", [(), NAMES, NAMES[1:2]], ids=["nothing", "all", "one"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupted"])
@pytest.mark.parametrize(("place", "name", "at"), STEPS, ids=lambda value: str(getattr(value, "__name__", value)))
def test_a_failure_at_any_step_leaves_the_old_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: tuple[str, ...],
    error: BaseException,
    place: Any,
    name: str,
    at: int,
) -> None:
    for each in old:
        (tmp_path / each).write_bytes(b"old " + each.encode())
    before = content(tmp_path)
    new = {tmp_path / each: b"new " + each.encode() for each in NAMES}
    # Without links a file is renamed to be kept: an OSError of os.link is no failure.
    fails = name != "link" or (isinstance(error, KeyboardInterrupt) and at < len(old))
    with monkeypatch.context() as patch:
        Failing(patch, place, name, at, error)
        if fails:
            with pytest.raises(type(error)):
                replace_files(new)
        else:
            replace_files(new)
    assert content(tmp_path) == (before if fails else {path.name: data for path, data in new.items()})


@pytest.mark.parametrize("at", range(6))
def test_a_failure_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for each in NAMES:
        (tmp_path / each).write_bytes(b"old")
    with monkeypatch.context() as patch:
        Failing(patch, Path, "replace", at, FULL)  # of keeping or of bringing, by turns
        with pytest.raises(OSError, match="No space left"):
            replace_files({tmp_path / each: b"new" for each in NAMES})
    assert content(tmp_path) == dict.fromkeys(NAMES, b"old")


def test_what_cannot_be_put_back_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in NAMES:
        (tmp_path / each).write_bytes(b"old")
    replace = Path.replace
    calls: Iterator[int] = iter(range(100))

    def breaks_down(self: Path, target: Path) -> Path:
        if next(calls) >= 2:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", breaks_down)
    with pytest.raises(OSError, match="Input/output error"):
        replace_files({tmp_path / each: b"new" for each in NAMES})
    assert sorted(content(tmp_path).values()).count(b"old") == 3


def test_a_file_system_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sync(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", no_sync)
    replace_files({tmp_path / "a": b"new"})
    assert content(tmp_path) == {"a": b"new"}


def test_sets_of_two_writers_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed, go_on = threading.Event(), threading.Event()
    original = Path.replace

    def replace(path: Path, target: Path) -> Path:
        moved = original(path, target)
        if target.name == NAMES[0] and not renamed.is_set():
            # The first writer waits among its renames; the second one is let in meanwhile.
            renamed.set()
            go_on.wait(0.3)
        return moved

    monkeypatch.setattr(Path, "replace", replace)
    writers = [
        threading.Thread(target=replace_files, args=({tmp_path / name: tag for name in NAMES},))
        for tag in (b"one", b"two")
    ]
    writers[0].start()
    assert renamed.wait(10)
    writers[1].start()
    for writer in writers:
        writer.join(10)
    assert content(tmp_path) == dict.fromkeys(NAMES, b"two")


def test_a_folder_that_somebody_holds_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("tam_fast.explanation.replacing._PATIENCE", 0.05)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        replace_files({tmp_path / "a": b"new"})
    finally:
        os.close(handle)
    assert content(tmp_path) == {"a": b"new"}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "soft").symlink_to("mine")
    (tmp_path / "hard").hardlink_to(tmp_path / "mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    replace_files({tmp_path / name: b"new" for name in ("soft", "hard", "dangling")})
    assert content(tmp_path) == {"mine": b"mine", "soft": b"new", "hard": b"new", "dangling": b"new"}
    assert not (tmp_path / "soft").is_symlink()


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(IsADirectoryError):
        replace_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_limit_on_file_sizes_leaves_the_old_explanation(tmp_path: Path) -> None:
    old = make_explanation(["old"])
    old.save(tmp_path / "e")
    before = content(tmp_path)
    program = (
        "import resource, sys; from explanations import make_explanation\n"
        "e = make_explanation(['new'])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: e.save(sys.argv[1])\n"
        "except OSError as error: print(error)"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "e")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert "File too large" in done.stdout
    assert "e.safetensors" in done.stdout
    assert content(tmp_path) == before
    assert_same(load(tmp_path / "e"), old)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_save_replaces_its_own_files_only(tmp_path: Path, suffix: str) -> None:
    e = make_explanation()
    paths = e.save(tmp_path / "e")
    assert all(is_ours(path) for path in paths)
    e.save(tmp_path / "e")
    mine = tmp_path / f"e.{suffix}"
    for data in (b"mine", b"", b"{}", b'{"format": "other"}', b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 8 + b"{"):
        mine.write_bytes(data)
        before = content(tmp_path)
        with pytest.raises(FileExistsError, match=rf"^path: expected .*e\.{suffix} exists and is not of .*force=True"):
            e.save(tmp_path / "e")
        assert content(tmp_path) == before
    e.save(tmp_path / "e", force=True)
    assert_same(load(tmp_path / "e"), e)
    mine.unlink()
    mine.mkdir()
    with pytest.raises(FileExistsError, match="exists and is no file"):
        e.save(tmp_path / "e", force=True)


def test_whose_a_picture_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    mark = PngInfo()
    mark.add_text(*PICTURE_MARK)
    for options, ours in (({"pnginfo": mark}, True), ({}, False)):
        Image.new("RGB", (3, 3)).save(path, **options)
        assert is_ours(path) == ours
    path.write_bytes(b"tEXtSoftware\0tam_fast")
    assert not is_ours(path)
    assert not is_ours(tmp_path / "none.png")


def test_write_protected_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_explanation().save(tmp_path / "e")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileExistsError, match="write-protected"):
        check_replaceable(paths, force=False)
    check_replaceable(paths, force=True)


@pytest.mark.parametrize("letter", ["n", "\u00e9", "\u732b", "\U0001f600", "\udcff"])
@pytest.mark.parametrize("length", [60, 242, 243, 244, 300, 5000])
def test_long_names_are_shortened(tmp_path: Path, letter: str, length: int) -> None:
    name = letter * length
    e = make_explanation(["a"])
    paths = e.save(tmp_path / name)
    assert all(path.is_file() for path in paths)
    assert_same(load(tmp_path / name), e)
    assert_same(load(paths[0]), e)
    if len(os.fsencode(name)) > 243:
        other = make_explanation(["b"]).save(tmp_path / (name + "x"))
        assert not set(other) & set(paths)
        assert_same(load(tmp_path / name), e)
    else:
        assert paths[1].name == name + ".json"


@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=300))
def test_a_fitting_stem_fits_and_is_kept(tmp_path_factory: pytest.TempPathFactory, stem: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    fitting = fitting_stem(folder, stem)
    assert len(os.fsencode(fitting + ".safetensors")) <= 255
    assert fitting_stem(folder, fitting) == fitting
    assert fitting == stem or len(os.fsencode(stem)) > 243
