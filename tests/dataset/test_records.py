"""What a part keeps of an explanation, and the explanation made of it again."""

import numpy as np
import pytest
import torch
from explanations import make_explanation

from tam_fast.dataset.durable import write_whole
from tam_fast.dataset.parts import GROUP_BYTES, clean, done, read_part, write_part
from tam_fast.dataset.records import check_kept, error_record, explanation_of, record_of, schema

pytest.importorskip("pyarrow")

TWO = {"shapes": ((4, 6), (3, 5)), "sources": (0, 1), "boxes": ((0, 0, 1, 1), (0, 0, 0.5, 1))}


def through_a_file(tmp_path, records):
    write_part(tmp_path / "part.parquet", records, {"a": "b"})
    return read_part(tmp_path / "part.parquet")


@pytest.mark.parametrize("maps_format, near", [("uint8", 1 / 255), ("float16", 5e-4)])
def test_an_explanation_comes_back(tmp_path, maps_format, near):
    e = make_explanation(**TWO, thinking="hm", source="given")
    (record,) = through_a_file(tmp_path, [record_of("x", e, "tokens", maps_format)])
    back = explanation_of(record, "test", "tokens", maps_format)
    for name in ("tokens", "token_ids", "text", "offsets", "prompt", "context_tokens", "source", "thinking", "steps"):
        assert getattr(back, name) == getattr(e, name), name
    assert back.candidates == e.candidates
    assert back.layout == e.layout
    assert back.images == []
    lower = e.maps.maps - back.maps.maps
    assert float(lower.abs().max()) <= near
    if maps_format == "uint8":
        assert float(lower.min()) >= -1e-6  # floor(255 x)
        # What is packed again has the same bytes.
        assert record_of("x", back)["maps"] == record["maps"]
    assert float((e.relevance - back.relevance).abs().max()) <= 1 / 255
    assert torch.equal(back.maps.scale, e.maps.scale)
    assert [w.text for w in back.words] == [w.text for w in e.words]


def test_bytes_are_floors_of_255_x():
    e = make_explanation(["a", " b"])
    expected = np.floor(255 * e.maps.maps.numpy()).astype(np.uint8)
    assert record_of("x", e)["maps"] == [row.tobytes() for row in expected]


def test_only_the_strongest_tokens_are_kept(tmp_path):
    e = make_explanation()
    (record,) = through_a_file(tmp_path, [record_of("x", e, "top:3")])
    strongest = sorted(e.visual_strength.argsort(descending=True)[:3].tolist())
    assert record["map_tokens"] == strongest
    back = explanation_of(record, "", "top:3")
    assert back.tokens == [e.tokens[t] for t in strongest]
    assert back.steps == strongest
    assert float((back.maps.maps - e.maps.maps[strongest]).abs().max()) <= 1 / 255


def test_words_and_no_maps(tmp_path):
    e = make_explanation()
    words, nothing = through_a_file(tmp_path, [record_of("x", e, "words"), record_of("y", e, "none")])
    assert len(words["maps"]) == len(e.words)
    first = np.frombuffer(words["maps"][0], dtype=np.uint8)
    assert (first == np.floor(255 * e.vector(e.words[0]).numpy())).all()
    assert nothing["maps"] == []
    assert nothing["words"][0]["text"] == "A"
    for record, kept in ((words, "words"), (nothing, "none")):
        with pytest.raises(ValueError, match="--maps tokens keeps them"):
            explanation_of(record, "", kept)


@pytest.mark.parametrize("maps", ["top", "top:0", "top:-1", "top:x", "all", "", None])
def test_maps_of_no_kind(maps):
    with pytest.raises(ValueError, match="maps: expected tokens, words, none or top:K"):
        check_kept(maps)


def test_error_rows(tmp_path):
    (record,) = through_a_file(tmp_path, [error_record("x", "it broke")])
    assert (record["status"], record["error"], record["maps"]) == ("error", "it broke", None)
    with pytest.raises(ValueError, match="x: expected a row that was explained, got an error: it broke"):
        explanation_of(record)


# Files -------------------------------------------------------------------------------------------------


def test_a_part_is_known_by_its_footer_and_rows(tmp_path):
    path = tmp_path / "part.parquet"
    assert not done(path, {}, 2)
    write_part(path, [error_record("x", ""), error_record("y", "")], {"shard": "1", "digest": "d"})
    assert done(path, {"shard": "1", "digest": "d"}, 2)
    assert not done(path, {"shard": "2"}, 2)
    assert not done(path, {"shard": "1"}, 3)
    path.write_bytes(path.read_bytes()[:-1])
    assert not done(path, {}, 2)


def test_row_groups_are_of_limited_size(tmp_path):
    import pyarrow.parquet as pq

    big = bytes(GROUP_BYTES // 3)
    records = [{**error_record(str(k), ""), "maps": [big]} for k in range(7)]
    write_part(tmp_path / "part.parquet", records, {})
    metadata = pq.read_metadata(tmp_path / "part.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [3, 3, 1]
    assert pq.read_table(tmp_path / "part.parquet").schema.names == schema().names


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_unfinished_goes(tmp_path):
    (tmp_path / "part-00000.parquet.77.unfinished").write_bytes(b"")
    (tmp_path / "part-00000.parquet").write_bytes(b"")
    clean(tmp_path, tmp_path / "attempts")
    assert [p.name for p in tmp_path.iterdir()] == ["part-00000.parquet"]
