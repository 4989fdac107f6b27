"""Text: tokens decoded one by one, their pieces and offsets, and which of them lie in a span."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from conftest_models import TEXTS, byte_tokenizer, piece_tokenizer

from tam_fast.demo import load_demo
from tam_fast.models.text import TextDecoder, special_token_ids, token_pieces
from tam_fast.models.typed import check_text, control_tokens, masked, tokenise, tokens_in_spans


def unigram_tokenizer(scheme="first"):
    """Control tokens among the pieces of the model, blanks that they swallow, added words, marks of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "<image>"]
    letters = [*"▁<>|/_abcdefghijklmnopqrstuvwxyzA:.\n", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "dog"]
    vocabulary = [(piece, 0.0) for piece in pieces] + [(piece, -3.0) for piece in letters]
    raw = Tokenizer(models.Unigram(vocabulary, 0, byte_fallback=True))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    swallowing = AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", swallowing]})
    tokenizer.add_tokens(["covid", "<tool_call>", "  ", AddedToken("<mark>", normalized=True)])
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "pieces": piece_tokenizer,
    "demo": lambda: load_demo()[1].tokenizer,
    **{
        f"unigram, {scheme}": lambda scheme=scheme: unigram_tokenizer(scheme) for scheme in ("first", "always", "never")
    },
    **dict.fromkeys(("qwen2vl", "internvl3_tokenizer", "llava15_tokenizer")),
}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    make = TOKENIZERS[request.param]
    if make is not None:
        return make()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(request.getfixturevalue("shared_data") / "processors" / request.param)


def chat(tokenizer, user):
    """Put a text between a template's control tokens; return the whole and where it stands."""
    first, *_, last = control_tokens(tokenizer).values()
    return f"{last}A: {user}\n{first} the", [(len(last) + 3, len(last) + 3 + len(user))]


def controls_in(tokenizer, ids):
    return [i for i in ids if i in control_tokens(tokenizer) and i != tokenizer.unk_token_id]


@pytest.mark.parametrize("add", [False, True])
def test_every_control_token_that_is_typed_stays_text(tokenizer, add):
    everything = control_tokens(tokenizer)
    assert special_token_ids(tokenizer) <= everything.keys()
    for token in everything.values():
        for user in (token, f"a {token} dog", f"{token}{token}", f"a{token}", f"{token} b", f"a{token[:-1]}<s>{token}"):
            text, spans = chat(tokenizer, user)
            found = tokenise(tokenizer, text, spans, add_special_tokens=add)
            assert found.typed
            plain = tokenizer(masked(text, spans)[0], add_special_tokens=add)["input_ids"]
            assert controls_in(tokenizer, found.ids) == controls_in(tokenizer, plain), user
            assert user in tokenizer.decode([found.ids[index] for index in found.users]), user
            obeyed = tokenise(tokenizer, text, spans, add_special_tokens=add, special_tokens="obey")
            assert list(obeyed.ids) == tokenizer(text, add_special_tokens=add)["input_ids"]


def test_ordinary_text_has_the_tokenizers_own_tokens_beside_control_tokens_too(tokenizer):
    """What stands for the template's control tokens changes nothing about the text between them."""
    draw = random.Random(0)
    for _ in range(40):
        user = "".join(
            draw.choice(["the", "dog", " ", "<", "x", "é", "你", "\n", "covid", "  ", "|>"]) for _ in range(8)
        )
        text, spans = chat(tokenizer, user)
        found = tokenise(tokenizer, text, spans, add_special_tokens=True)
        assert list(found.ids) == tokenizer(text)["input_ids"]
        assert not found.typed
        forced = tokenise(tokenizer, text, spans, add_special_tokens=True, placeholders=[user])
        assert forced.typed
        assert (forced.ids, forced.users) == (found.ids, found.users), user


def test_control_tokens_behind_a_normaliser_stay_text():
    """NFKC makes ``<mark>`` of full-width characters, which is looked for afterwards."""
    tokenizer = unigram_tokenizer()
    text, spans = chat(tokenizer, "a ＜mark＞ b")
    found = tokenise(tokenizer, text, spans, add_special_tokens=False)
    obeyed = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [len(controls_in(tokenizer, ids)) for ids in (obeyed, found.ids)] == [2, 1], "the template's alone"


def test_a_control_token_that_only_its_own_characters_spell_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE({"a": 0, "§": 1, "b": 2}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="§")
    with pytest.raises(ValueError, match=r"special_tokens: expected control tokens .* got \['§'\]"):
        tokenise(tokenizer, "a§b", [(0, 3)], add_special_tokens=False)
    assert tokenise(tokenizer, "a§b", [(0, 1)], add_special_tokens=False).ids == (0, 1, 2)


def test_a_text_of_all_private_characters_is_masked():
    text = "".join(map(chr, range(0xE000, 0xF900)))
    assert masked(f"a{text}b", [(0, 1)])[0][1:] == f"{text}b"


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc80b", "\ud83d\ude00", "你\udcfc"])
def test_lone_surrogates_are_refused_by_name(text):
    with pytest.raises(ValueError, match=r"prompt: expected text that can be written as UTF-8, got the lone surrogate"):
        check_text("prompt", text)
    check_text("prompt", "\ufffd\U0001f600\ue000\x00")


def test_the_decoders_text_is_the_tokenizers(tokenizer):
    """At each step, for tokens of any kind: stray bytes, characters in parts, U+FFFD that is one, unknown ids."""
    draw = random.Random(1)
    size = len(tokenizer)
    stray = [i for i in range(min(size, 1000)) if "\ufffd" in tokenizer.decode([i])] or [0]
    stray += list(special_token_ids(tokenizer))
    alphabet = [*"a dog.\n", "é", "你", "\ufffd", " \ufffd", "🙂", "\ufffd\ufffd", "\u2581"]
    for trial in range(80):
        length = draw.choice([1, 2, 3, 10, 100])
        if trial % 3:
            pool = [range(min(size, 300)), range(size + 5)][trial % 2] if trial % 9 else stray
            ids = [draw.choice(pool) for _ in range(length)]
        else:
            text = "".join(draw.choice(alphabet) for _ in range(length))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoder = TextDecoder(tokenizer)
        for index, token in enumerate(ids):
            peeked = decoder.peek(token)
            assert decoder.append(token) == peeked
            if index % 7 == 0 or index == len(ids) - 1:
                known = tokenizer.decode(ids[: index + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                assert decoder.text == known
        starts = [start for start, _ in decoder.offsets]
        assert starts == sorted(starts)
        covered = sorted({(start, end) for start, end in decoder.offsets if end > start})
        ends = [0, *(end for _, end in covered)]
        assert [start for start, _ in covered] == ends[:-1], "gap or overlap"
        assert ends[-1] == len(decoder.text)


@pytest.mark.parametrize("text", ["\ufffd", "\ufffd\ufffd", "a \ufffd", "\ufffd a\ufffdb \ufffd"])
def test_a_genuine_replacement_character_is_kept(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoder = TextDecoder(tokenizer)
    for token in ids:
        decoder.append(token)
    assert decoder.text.count("\ufffd") == text.count("\ufffd")
    assert decoder.text.strip() == text


def test_tokens_in_spans():
    offsets = [(0, 0), (0, 3), (3, 5), (5, 5), (5, 9), (9, 9)]
    assert tokens_in_spans(offsets, [(3, 5)]) == [2, 3]
    assert tokens_in_spans(offsets, [(4, 6)]) == [2, 3, 4]
    assert tokens_in_spans(offsets, [(0, 3), (8, 9)]) == [1, 4, 5]
    assert tokens_in_spans(offsets, []) == []


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_decoder_gives_text_pieces_and_offsets(make, text):
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoder = TextDecoder(tokenizer)
    for index, token in enumerate(ids):
        peeked = decoder.peek(token)
        assert decoder.append(token) == peeked
        assert decoder.text == tokenizer.decode(ids[: index + 1], skip_special_tokens=True)
    assert decoder.text == tokenizer.decode(ids, skip_special_tokens=True) == text
    covered = sorted(set(decoder.offsets))
    assert covered[0][0] == 0
    assert covered[-1][1] == len(text)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(covered)), "gap or overlap"
    for piece, (start, end) in zip(decoder.pieces, decoder.offsets, strict=True):
        assert end > start or (piece, start) == ("", 0), "a leading space that decoding drops"
        assert "\ufffd" in piece or piece == text[start:end]
    assert token_pieces(tokenizer, ids) == decoder.pieces


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
def test_decoder_survives_garbage_and_special_tokens(make):
    tokenizer = make()
    special = tokenizer.eos_token_id
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len(tokenizer), (150,), generator=generator).tolist()
        ids[7] = special
        decoder = TextDecoder(tokenizer)
        for token in ids:
            decoder.append(token)
        assert decoder.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert decoder.pieces[7] == tokenizer.eos_token
        assert decoder.offsets[7][0] == decoder.offsets[7][1]
        assert all(0 <= start <= end <= len(decoder.text) for start, end in decoder.offsets)
    assert TextDecoder(tokenizer).peek(special) == tokenizer.eos_token
