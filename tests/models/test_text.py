"""Text: tokens decoded one by one, their pieces and offsets, and which of them lie in a span."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest_models import TEXTS, byte_tokenizer, piece_tokenizer

from tam_fast.models.text import TextDecoder, token_pieces, tokens_in_spans


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
        known = tokenizer.decode(ids[: index + 1], skip_special_tokens=True)
        assert decoder.text == known or (decoder.text.endswith("\ufffd") and known.endswith("\ufffd"))
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
        if make is byte_tokenizer:  # runs of stray bytes are decoded as a whole by the other
            known = tokenizer.decode(ids, skip_special_tokens=True)
            assert decoder.text.rstrip("\ufffd") == known.rstrip("\ufffd")
        assert decoder.pieces[7] == tokenizer.eos_token
        assert decoder.offsets[7][0] == decoder.offsets[7][1]
        assert all(0 <= start <= end <= len(decoder.text) for start, end in decoder.offsets)
    assert TextDecoder(tokenizer).peek(special) == tokenizer.eos_token
