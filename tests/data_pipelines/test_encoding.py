"""Documents to a token file: the result does not depend on pieces and threads."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import encoding, sources
from data_pipelines.characters import CharTokenizer
from data_pipelines.errors import DataProblem
from data_pipelines.gpt2 import GPT2Tokenizer
from data_pipelines.prepare import prepare
from tests.data_pipelines.test_shards import expected, tokens_of

GPT2 = GPT2Tokenizer()


@pytest.mark.slow
@given(
    texts=st.lists(st.text("ab \n'sé", max_size=40), min_size=1),
    size=st.integers(1, 9),
    threads=st.integers(1, 3),
)
def test_small_pieces_and_threads_change_no_token(tmp_path_factory, texts, size, threads):
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_bytes(text.encode())
    source = sources.open_text(f"text:{folder}")
    if not any(texts):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "CHUNK", size)
        for tokenizer in (GPT2, CharTokenizer.build(texts)):
            made = encoding.encode(
                source.parts, tokenizer, "<i4", folder / "tokens", threads=threads
            )
            found = np.fromfile(folder / "tokens", "<i4")
            assert np.array_equal(found, expected(tokenizer, texts))
            assert (made.tokens, made.documents) == (len(found), sum(map(bool, texts)))


def test_one_long_text_is_encoded_by_several_threads(tmp_path, monkeypatch):
    """Two pieces are encoded at the same time, or the barrier breaks; no more than four wait."""
    barrier, begun, written = threading.Barrier(2, timeout=30), [], []
    monkeypatch.setattr(encoding, "CHUNK", 100)
    encode, add = encoding._encode, encoding.Writer.add

    def together(tokenizer, pieces):
        begun.append(len(pieces))
        if len(begun) <= 2:
            barrier.wait()
        assert len(begun) - len(written) <= 4
        return encode(tokenizer, pieces)

    def counted(self, ids, unknown):
        add(self, ids, unknown)
        written.append(len(ids))

    monkeypatch.setattr(encoding, "_encode", together)
    monkeypatch.setattr(encoding.Writer, "add", counted)
    text = "the quick brown fox\n" * 100
    (tmp_path / "text.txt").write_text(text)
    made = prepare(f"text:{tmp_path / 'text.txt'}", tmp_path / "out", tokenizer=GPT2, workers=2)
    assert np.array_equal(tokens_of(tmp_path / "out"), GPT2.encode(text))
    assert made["documents"] == 1
    assert len(begun) > 10


def test_an_error_in_a_later_piece_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 100)
    (tmp_path / "text.txt").write_bytes(b"the quick brown fox\n" * 100 + b"\xff")
    with pytest.raises(DataProblem, match="not UTF-8") as caught:
        encoding.encode(
            sources.open_text(f"text:{tmp_path}").parts, GPT2, "<u2", tmp_path / "tokens", threads=2
        )
    assert caught.value.where == f"{tmp_path / 'text.txt'}, byte 2000"
