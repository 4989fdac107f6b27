"""Where tests find NLTK's tagger and WordNet, and a tokenizer that spells any text, byte by byte, without data."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
from places import data_folder

END = "<|im_end|>"

_FOLDER = data_folder() / "nltk_data"
if _FOLDER.is_dir():
    os.environ.setdefault("NLTK_DATA", str(_FOLDER))

needs_nltk_data = pytest.mark.skipif(
    "NLTK_DATA" not in os.environ, reason="NLTK_DATA is not set, and there are no data beside the checkout"
)


@cache
def byte_tokenizer() -> Any:
    """A token a byte, and an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.add_special_tokens({"eos_token": END})
    return made


def ids_of(text: str) -> list[int]:
    """Token ids of a text by :func:`byte_tokenizer`."""
    return [int(one) for one in byte_tokenizer()(text, add_special_tokens=False)["input_ids"]]
