"""Texts of others are shown and never run; nothing is asked for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from explanations import make_explanation
from pages import settle

from tam_fast.explanation import Candidate
from tam_fast.explanation.page import page_text

pytestmark = pytest.mark.long

_RUN = "window.ran=(window.ran||0)+1"
_FRAGMENTS = [
    f"<script>{_RUN}</script>",
    f"</script><script>{_RUN}</script>",
    f"<img src=x onerror={_RUN}>",
    f'"><svg onload={_RUN}>',
    f"' onmouseover='{_RUN}' x='",
    f'" autofocus onfocus="{_RUN}',
    f"javascript:{_RUN}",
    f"<iframe srcdoc='<script>parent.{_RUN}</script>'></iframe>",
    "<link rel=stylesheet href=https://example.com/x.css>",
    "<img src=https://example.com/x.png>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
    "<base href=https://example.com/>",
    "<style>@import 'https://example.com/x.css';body{display:none}</style>",
    "<a href=https://example.com ping=https://example.com>x</a>",
    f"{{{{ {_RUN} }}}}",
    "{% for x in () %}",
    f"${{{_RUN}}}",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "</title>",
    "</style>",
    "</textarea>",
    "</noscript>",
    "<plaintext>",
    "&lt;b&gt;&#60;&amp;",
    "\\u003cscript\\u003e",
    "\\",
    "\u2028",
    "\u2029",
    "\x00",
    "\x1b[31m",
    "\x7f",
    "\ud83d",
    "\udc00",
    "\u202e",
    "\u2066",
    "\ufeff",
    "\ufffd",
    "\r",
    "\n",
    "\t",
    "'",
    '"',
    "`",
    "猫",
    "שלום",
    "👩‍👩‍👧",
    "é\u0301\u0301",
]


def strings(count: int) -> list[str]:
    chance = random.Random(0)
    whole = list(_FRAGMENTS)
    while len(whole) < count:
        whole.append("".join(chance.choices(_FRAGMENTS, k=chance.randint(1, 4))))
    return whole


def cleaned(text: str) -> str:
    """What stands on the page: controls as their pictures, halves of pairs replaced, line ends one character."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else c for c in text).replace("\x7f", "\u2421")
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


@pytest.mark.parametrize("part", range(5))
def test_hostile_texts_everywhere(visit: Callable[..., Any], part: int) -> None:
    some = strings(1000)[200 * part : 200 * part + 200]
    made = make_explanation(some, ((2, 3),), prompt=20)
    made.context_tokens[:] = [*some[:20], *some[: len(some) - 1]]
    made.prompt, made.model = "".join(some[:20]), some[31]
    made.candidates[:] = [[Candidate(1, token, 0.5), Candidate(2, some[-1 - n], 0.25)] for n, token in enumerate(some)]
    made.messages = [
        {"role": some[7], "content": [{"type": some[8]}, {"type": "text", "text": some[9]}]},
        {"role": "user", "content": made.prompt},
    ]
    page = visit(page_text(made, title=some[0] + some[-1]))
    assert page.locator(".said").last.evaluate("e => e.textContent") == "".join(map(cleaned, some))
    assert page.locator("h1").evaluate("e => e.textContent") == cleaned(some[0] + some[-1])
    assert page.title().split() == cleaned(some[0] + some[-1]).split()
    units = page.locator(".u")
    page.keyboard.press("ArrowRight")
    for unit in range(0, units.count(), 7):
        # Through the page itself: thousands of real movements would take minutes.
        page.evaluate("unit => page.views[0].focus(unit)", unit)
        settle(page)
        word = page.evaluate("page.views[0].word")
        assert page.locator(".about .word").evaluate("e => e.textContent") == word
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator("iframe, link, base, object, embed, a, form[action], [onerror], [onload], [style]").count() == (
        page.locator("[style]").count()
    )
    assert page.locator("img").count() == 1


def test_the_policy_holds(browser: Any, tmp_path: Any) -> None:
    """Were a script or a request to come in all the same, the browser would refuse it."""
    text = page_text(make_explanation(["a"], ((1, 1),)))
    bad = f"<script>{_RUN}</script><img src=https://example.com/x.png><p style='display:none' onclick='{_RUN}'>x</p>"
    file = tmp_path / "page.html"
    file.write_text(text.replace("<header>", f"{bad}<header>"), encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    asked, said = [], []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    page.locator("p", has_text="x").first.click()
    assert page.evaluate("window.ran") is None
    assert [url for url in asked if "example" in url] == []
    assert sum("Content Security Policy" in line for line in said) >= 3
    context.close()
