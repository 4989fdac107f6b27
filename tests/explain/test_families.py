"""Every family is asked more than one prompt: texts without images, conversations, its prompt's words, thinking."""

from __future__ import annotations

import pytest
import torch
from conftest_models import PROMPT, picture
from families import builders
from layout_cases import build_or_skip

from tam_fast import Explainer
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.layouts.source import token_id

QUICK = ("qwen3_vl", "internvl")
NEED_IMAGES = frozenset({"fuyu", "got_ocr2", "paligemma", "pp_chart2table"})


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in sorted(builders())],
)
def case(request):
    built = build_or_skip(request.param)
    return request.param, Explainer(built.model, built.processor)


def settings(explainer):
    config = explainer.model.config
    unsaid = [number for kind in ("image", "video") if (number := token_id(config, kind)) is not None]
    unsaid = [number for number in unsaid if number < explainer._head().size]
    return {"max_new_tokens": 3, "min_new_tokens": 3, "suppress_tokens": unsaid or None}


def agrees(explainer, **asked):
    e = explainer.explain(**asked, **settings(explainer))
    told = explainer.explain(**asked, answer=e.token_ids)
    assert (e.source, told.source) == ("generated", "given")
    torch.testing.assert_close(e.maps.maps, told.maps.maps, atol=2e-4, rtol=0)
    torch.testing.assert_close(e.relevance, told.relevance, atol=2e-4, rtol=0)
    return e


def user(*parts):
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def test_a_text_without_images(case):
    name, explainer = case
    if name.partition(".")[0] in NEED_IMAGES:
        with pytest.raises(ModelNotSupportedError, match="images: expected at least one image, without which"):
            explainer.explain(prompt=PROMPT)
        return
    e = agrees(explainer, prompt=PROMPT)
    assert e.maps.maps.shape == (3, 0)
    words = "".join(e.context_tokens[: e.layout.prompt.numel()])
    assert words.strip() == PROMPT


def test_the_prompts_words(case):
    _, explainer = case
    e = explainer.explain(picture(), PROMPT, targets="prompt")
    assert e.text.strip() == PROMPT
    assert torch.isfinite(e.maps.maps).all()


def test_a_conversation(case):
    _, explainer = case
    chat = [user({"type": "image", "image": picture()}, "What is the dog?"), _said("The dog is red."), user("A cat?")]
    e = agrees(explainer, messages=chat)
    assert "".join(e.context_tokens[:-2]).strip() == "A cat?"
    whole = agrees(explainer, messages=chat, context="conversation")
    said = "".join("".join(whole.context_tokens[:-2]).split())
    assert said == "Whatisthedog?Thedogisred.Acat?"
    recorded = explainer.explain(messages=chat, turn=0)
    assert recorded.text.strip() == "The dog is red."
    plain = explainer.explain(picture(), "What is the dog?", answer="The dog is red.")
    assert torch.equal(recorded.maps.maps, plain.maps.maps)


def _said(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_thinking_is_apart(case):
    _, explainer = case
    e = explainer.explain(picture(), PROMPT, answer="<think>\nA cat?\n</think>\n\nA dog.")
    assert (e.text.strip(), e.thinking) == ("A dog.", "A cat?")
