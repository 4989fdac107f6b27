"""The embedded model, loaded once; a tokenizer made for the present scenes."""

from __future__ import annotations

import pytest

from tam_fast.demo import build_tokenizer, load_demo


@pytest.fixture(scope="session")
def demo():
    return load_demo()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer.build(folder)
    return folder
