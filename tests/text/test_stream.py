"""Streamed pieces add up to the text of all ids, whatever the tokenizer and however the ids are cut."""

import itertools

import pytest
import tokenizers as tk
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_jax.text.stream import StreamDecoder
from vila_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def words():
    """A word-level tokenizer without a decoder: words are joined by spaces."""
    backend = tk.Tokenizer(tk.models.WordLevel({"<unk>": 0, "red": 1, "blue": 2, "?": 3}, unk_token="<unk>"))
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend, special_tokens={"eos_token": "</s>"})


@pytest.fixture(scope="module")
def streamed(tokenizers_by_name, words):
    return {**tokenizers_by_name, "words": words}


def stream(tokenizer, chunks, **options):
    decoder = StreamDecoder(tokenizer, **options)
    return [*(decoder.push(chunk) for chunk in chunks), decoder.flush()]


@pytest.mark.parametrize("name", ["hired", "llama", "qwen2", "words"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_pieces_add_up(name, data, streamed):
    tokenizer = streamed[name]
    ids = st.integers(0, tokenizer.vocab_size + 8)  # the embedding table is often larger than the vocabulary
    if name == "llama":  # many byte tokens
        ids |= st.sampled_from(sorted(tokenizer.byte_ids)) | st.sampled_from([3 + byte for byte in "é😀".encode()])
    chunks = data.draw(st.lists(st.lists(ids, max_size=4), max_size=20))
    for skip in (True, False):
        pieces = stream(tokenizer, chunks, skip_special_tokens=skip)
        assert "".join(pieces) == tokenizer.decode([*itertools.chain(*chunks)], skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["hired", "llama", "qwen2"])
@pytest.mark.parametrize("text", ["Look: 😀👩‍👩‍👧 done", " é日本語 the", "   spaces  first", "line\n\nline\n"])
def test_text_comes_back_token_by_token(name, text, streamed):
    tokenizer = streamed[name]
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, [[index] for index in ids])
    assert "".join(pieces) == tokenizer.decode(ids) and "".join(pieces).strip() == text.strip()
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_emoji_comes_whole(streamed):
    tokenizer = streamed["hired"]
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    assert len(ids) == 6
    assert stream(tokenizer, [[index] for index in ids]) == ["a", "", "", "", "😀", "b", ""]


def test_text_is_given_as_soon_as_it_is_certain(streamed):
    tokenizer = streamed["llama"]
    ids = tokenizer.encode("the car is red", add_special_tokens=False)
    pieces = stream(tokenizer, [[index] for index in ids])
    assert all(pieces[:-1]) and pieces[-1] == ""


def test_a_broken_run_of_bytes_turns_wholly_into_replacements(streamed):
    # `A` alone would be text, but the byte 0xFF after it spoils the run that both are part of.
    tokenizer = streamed["llama"]
    ids = [3 + ord("A"), 3 + 0xFF, *tokenizer.encode("the", add_special_tokens=False)]
    pieces = stream(tokenizer, [[index] for index in ids])
    assert pieces[0] == "" and "".join(pieces).startswith("\ufffd\ufffd")


def test_what_never_completes_comes_with_the_flush(streamed):
    tokenizer = streamed["hired"]
    ids = tokenizer.encode("a😀", add_special_tokens=False)[:-1]
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(ids) == "a"
    assert decoder.flush() == "\ufffd" and decoder.flush() == ""


def test_the_window_stays_short(streamed, monkeypatch):
    tokenizer, sizes = streamed["hired"], []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **k: sizes.append(len(ids)) or decode(ids, **k))
    stream(tokenizer, [[index] for index in tokenizer.encode("what is in this image? " * 50)])
    assert len(sizes) > 300 and max(sizes) <= 6
