"""Graphs of what an answer's tokens rest on."""

from __future__ import annotations

import json

import pytest
import torch
from explanations import make_explanation


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


def test_networkx_takes_it() -> None:
    networkx = pytest.importorskip("networkx")
    edges = make_explanation().graph()
    assert networkx.DiGraph(edges).number_of_edges() == len(edges)
    assert edges.to_networkx().nodes["answer:1"]["text"] == " red"


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match=r"^top: expected at least 1, got 0"):
        make_explanation().graph(0)
    with pytest.raises(TypeError, match=r"^top: "):
        make_explanation().graph(1.5)  # type: ignore[arg-type]
