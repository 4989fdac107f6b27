"""Graphs of what an answer's tokens rest on."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from explanations import make_explanation

from tam_fast.explanation import Explanation


def test_edges_are_the_strongest_on_one_scale() -> None:
    e = make_explanation(["A", " red", " ball"], ((2, 4),))
    e.maps.relevance[:] = torch.tensor([[0.1, 0.9, 0.2, 0, 0], [0.3, 0.1, 0.0, 0.7, 0], [0, 0, 0, 0.2, 0.4]])
    maps = torch.zeros(3, 8)
    maps[1, 2], maps[1, 6], maps[1, 0] = 0.8, 0.5, 0.39
    e.maps.maps[:] = maps
    edges = e.graph(top=2)
    assert [(source, target, round(found["weight"], 6)) for source, target, found in edges] == [
        ("prompt:1", "answer:0", 0.9),
        ("prompt:2", "answer:0", 0.2),
        ("answer:0", "answer:1", 0.7),
        ("prompt:0", "answer:1", 0.3),
        ("image:0", "answer:1", 0.8),
        ("answer:1", "answer:2", 0.4),
        ("answer:0", "answer:2", 0.2),
    ]
    image = edges[4][2]
    assert (image["kind"], image["target"]) == ("image", " red")
    assert image["region"] == [0.5, 0.0, 0.75, 1.0]
    assert edges[2][2]["source"] == e.context_tokens[3]
    assert json.loads(json.dumps(edges)) == [list(edge) for edge in edges]


def test_what_comes_later_is_no_reason() -> None:
    e = make_explanation()
    for source, target, _ in e.graph(top=100):
        if source.startswith("answer:"):
            assert int(source.split(":")[1]) < int(target.split(":")[1])
    assert sum(kind["kind"] == "image" for *_, kind in e.graph()) == len(e)


def names(e: Explanation, top: int = 100) -> dict[str, list[str]]:
    """The sources of each target's edges."""
    found: dict[str, list[str]] = {}
    for source, target, _ in e.graph(top):
        found.setdefault(target, []).append(source)
    return found


def test_parts_of_an_answer_rest_on_all_that_was_generated_before(film: Explanation) -> None:
    found = names(film)
    assert list(found) == ["answer:3", "answer:4", "answer:6", "answer:7", "answer:8", "answer:9"]
    thinking = ["thinking:0", "thinking:1"]
    before = [*thinking, *(f"answer:{place}" for place in range(2, 6))]
    grids = ["image:0", "video:0:0", "video:0:1", "video:0:2"]
    assert sorted(found["answer:6"]) == sorted(["prompt:0", "prompt:1", *before, *grids])
    assert [source for source, _, kind in film.graph(100) if kind["source"] == "hm"] == ["thinking:1"] * 6
    film.thinking = "of something else"
    assert "answer:1" in names(film)["answer:3"]


def test_a_thinking_section_that_is_explained_itself() -> None:
    tokens = ["<think>", " I", " see", "</think>"]
    e = make_explanation(tokens, context_tokens=["c0", "c1", "c2", *tokens[:3]], thinking="I see")
    assert list(names(e)) == ["thinking:0", "thinking:1", "thinking:2", "answer:3"]


def test_a_prompt_that_is_explained_itself_has_no_context_before_it() -> None:
    e = make_explanation(["What", " is", " it"], prompt=0)
    found = names(e)
    assert found["answer:0"] == ["image:0"]
    assert sorted(found["answer:2"]) == ["answer:0", "answer:1", "image:0"]


def test_text_alone_has_text_edges(text_only: Explanation) -> None:
    assert {kind["kind"] for *_, kind in text_only.graph()} == {"text"}
    assert make_explanation([]).graph() == []


@pytest.mark.parametrize("make", ["film", "text_only"])
def test_networkx_takes_it(make: str, request: pytest.FixtureRequest) -> None:
    """A list of (from, to, attributes), each pair once: what networkx.DiGraph documents as an edge list."""
    edges = request.getfixturevalue(make).graph(100)
    pairs = [(source, target) for source, target, _ in edges]
    assert len(set(pairs)) == len(pairs)
    assert all(isinstance(name, str) for pair in pairs for name in pair)
    assert json.loads(json.dumps(edges)) == [list(edge) for edge in edges]
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph(edges)
    assert {(a, b): found for a, b, found in graph.edges(data=True)} == {(a, b): found for a, b, found in edges}
    assert graph.number_of_edges() == len(edges)
    assert networkx.is_directed_acyclic_graph(graph)
    made = edges.to_networkx()
    assert set(made.edges) == set(pairs)
    assert all(isinstance(text, str) for _, text in made.nodes(data="text"))


def test_without_networkx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match=r"pip install networkx"):
        make_explanation().graph().to_networkx()


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match=r"^top: expected at least 1, got 0"):
        make_explanation().graph(0)
    with pytest.raises(TypeError, match=r"^top: "):
        make_explanation().graph(1.5)  # type: ignore[arg-type]
