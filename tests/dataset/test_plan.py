"""Which rows are in which shard, and what a manifest keeps of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tam_fast.dataset.manifest import MANIFEST, Manifest, differences
from tam_fast.dataset.plan import Plan, changed, grown
from tam_fast.dataset.sources import File

pytest.importorskip("pyarrow")


def files(*counts):
    return [File(f"f{k}", 10 * k, k, count) for k, count in enumerate(counts)]


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.integers(0, 9), max_size=4), st.integers(1, 7))
def test_every_row_is_in_one_shard(first, added, size):
    plan = Plan(files(*first), size, [sum(first)])
    before = list(plan.shards())
    plan = grown(plan, files(*first, *added))
    shards = list(plan.shards())
    # What was planned stays as it was; what came later is behind it.
    assert shards[: len(before)] == before
    assert len(plan) == len(shards)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    everything = [(f"f{k}", row) for k, count in enumerate([*first, *added]) for row in range(count)]
    found = [
        (file.path, row)
        for shard in shards
        for file, start, stop in plan.pieces(shard.first, shard.rows)
        for row in range(start, stop)
    ]
    assert found == everything
    assert all(0 < shard.rows <= size for shard in shards)


def test_files_that_changed_are_named():
    old = files(3, 4)
    assert changed(old, files(3, 4, 5)) == ""
    assert changed(old, old[:1]) == ""
    assert changed(old, [File("f1", 11, 1, 4)]) == "f1 changed (size)"
    assert changed(old, [File("f1", 10, 2, 5)]) == "f1 changed (mtime, rows)"


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    plan = grown(Plan(files(3, 4), 2, [7]), files(3, 4, 5))
    made = Manifest(plan, {"kind": "x"}, {"prompt": "é", "model": {"name": "m"}}, {"torch": "2"})
    made.write(tmp_path)
    found = Manifest.read(tmp_path)
    assert (found.plan, found.input, found.config, found.versions) == (plan, made.input, made.config, made.versions)
    assert found.digest == made.digest
    assert len(list(tmp_path.glob("files-*.parquet"))) == 1
    Manifest(Plan(files(1), 2, [1]), {}, {}, {}).write(tmp_path)
    assert len(list(tmp_path.glob("files-*.parquet"))) == 1


@pytest.mark.parametrize("spoilt", ["nothing", "{}", "format", "version", "files"])
def test_manifests_that_are_none(tmp_path, spoilt):
    Manifest(Plan(files(3), 2, [3]), {}, {}, {}).write(tmp_path)
    path = tmp_path / MANIFEST
    document = json.loads(path.read_text())
    if spoilt == "files":
        (tmp_path / document["files"]).write_bytes(b"other")
    elif spoilt in document:
        path.write_text(json.dumps({**document, spoilt: 99}))
    else:
        path.write_text(spoilt)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_each_difference_is_named():
    old = {"model": {"name": "a", "dtype": "x"}, "prompt": "p", "gone": 1}
    new = {"model": {"name": "b", "dtype": "x"}, "prompt": "p", "new": None}
    assert differences(old, new) == ["gone: 1, now null", 'model.name: "a", now "b"']
    assert differences(old, old) == []
