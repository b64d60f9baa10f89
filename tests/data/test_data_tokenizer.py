"""Tokenizers: nothing lost, every byte counted, the same every time, and read by transformers."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from shoestring.data import TextTokenizer, bpe, byte_tokenizer, train_bpe
from shoestring.errors import UsageError

CODE = Path(json.__file__).read_text() + Path(json.decoder.__file__).read_text()
BPE = train_bpe([CODE], 600)
BOTH = pytest.mark.parametrize("tokenizer", [BPE, byte_tokenizer()], ids=["bpe", "bytes"])
texts = st.text() | st.text("ab1 \t\n_.(é日😀\u0301", max_size=40) | st.just("x<|endoftext|>\r\n\r\n    y")


@BOTH
@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_round_trip_and_every_byte_is_counted(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_lengths[ids].sum()) == len(text.encode())
    assert tokenizer.end not in ids
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]


@BOTH
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_stream_says_what_decode_says_in_whole_characters(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    random = st.lists(st.integers(0, tokenizer.vocabulary - 1), max_size=20)
    ids = data.draw(random | texts.map(tokenizer.encode))
    stream = tokenizer.stream()
    said = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(said) == tokenizer.decode(ids)
    assert all(piece.encode().decode() == piece for piece in said)


def test_a_stream_waits_for_the_last_byte() -> None:
    stream = byte_tokenizer().stream()
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"


def test_shape_of_the_vocabularies() -> None:
    assert (BPE.vocabulary, BPE.end) == (600, 0)
    small = byte_tokenizer()
    assert (small.vocabulary, small.end) == (257, 256)
    assert small.encode("hé") == list("hé".encode())
    for tokenizer in (BPE, small):
        assert tokenizer.byte_lengths.shape == (tokenizer.vocabulary,)
        assert tokenizer.byte_lengths[tokenizer.end] == 0
        assert tokenizer.decode([tokenizer.end]) == ""


def test_training_is_deterministic_and_runs_out_of_pairs() -> None:
    assert train_bpe([CODE], 600).fingerprint == BPE.fingerprint
    assert train_bpe([CODE], 601).fingerprint != BPE.fingerprint
    assert train_bpe(["ab"], 1000).vocabulary == 257


def test_indentation_and_words_are_single_tokens() -> None:
    learned = set(BPE.token_bytes)
    assert b"        " in learned | {token[1:] for token in learned}
    assert b" return" in learned
    assert not any(token.strip(b" ").isdigit() and len(token.strip(b" ")) > 2 for token in learned)


@BOTH
def test_saved_is_loaded_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = TextTokenizer.load(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(CODE) == tokenizer.encode(CODE)


@BOTH
def test_transformers_reads_it(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    text = "def f(x):\n    return 'é' + x[10:2024]\n"
    for kind in (transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer):
        theirs = kind.from_pretrained(tmp_path)
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
        assert theirs.eos_token_id == tokenizer.end
        assert len(theirs) == tokenizer.vocabulary


def foreign(path: Path, **changes: object) -> Path:
    """A tokenizer.json as another project would leave it."""
    BPE.save(path)
    (path / "tokenizer_config.json").unlink()
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


def test_a_foreign_tokenizer_does_not_truncate_or_pad(tmp_path: Path) -> None:
    rules = tokenizers.Tokenizer.from_file(str(foreign(tmp_path)))
    rules.enable_truncation(4)
    rules.enable_padding(length=4)
    rules.save(str(tmp_path / "tokenizer.json"))
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.encode_batch([CODE]) == [BPE.encode(CODE)]
    assert loaded.end == BPE.end


def test_the_config_beside_names_the_end(tmp_path: Path) -> None:
    file = foreign(tmp_path)
    rules = tokenizers.Tokenizer.from_file(str(file))
    rules.add_special_tokens(["<stop>"])
    rules.add_tokens(["été"])
    rules.save(str(file))
    for named in ("<stop>", {"content": "<stop>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}))
        loaded = TextTokenizer.load(file)
        assert loaded.end == 600
        assert loaded.byte_lengths.tolist()[600:] == [0, 5]
        assert loaded.decode(loaded.encode("un été<stop>")) == "un été<stop>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<gone>"}))
    with pytest.raises(UsageError, match=r"'<gone>', which tokenizer_config.json names, is not in it"):
        TextTokenizer.load(file)


def test_what_does_not_tell_the_bytes_of_its_tokens_is_refused(tmp_path: Path) -> None:
    file = foreign(tmp_path, decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}]})
    with pytest.raises(UsageError, match="neither byte-level"):
        TextTokenizer.load(file)
    file = foreign(tmp_path, decoder={"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, model="gone")
    with pytest.raises(UsageError, match="not a tokenizer of the `tokenizers` package"):
        TextTokenizer.load(file)
    for content, complaint in (("{", "not JSON"), ("[]", "not a JSON object")):
        file.write_text(content)
        with pytest.raises(UsageError, match=complaint):
            TextTokenizer.load(file)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        TextTokenizer.load(tmp_path / "gone.json")


def test_no_end_token_is_refused(tmp_path: Path) -> None:
    rules = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel()
    rules.decoder = decoders.ByteLevel()
    rules.normalizer = normalizers.NFC()
    rules.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="no end-of-document token"):
        TextTokenizer.load(tmp_path)


def test_one_huge_word_trains_quickly() -> None:
    """Every pair merged takes a pass over the words that hold it: in one word of half a million letters, minutes."""
    word = "".join(random.Random(0).choices("acgt", k=1 << 19))
    start = time.process_time()
    assert train_bpe([word], 1024).vocabulary == 1024
    assert time.process_time() - start < 15


@pytest.mark.parametrize("run", ["a", "=", " ", "é"])
def test_words_of_the_usual_length_are_trained_on_whole(run: str) -> None:
    whole = f"def {run * bpe.LONGEST}1 {run}: return 1"
    assert "".join(bpe._without_long_words(whole)) == whole
    assert list(bpe._without_long_words("a" + run * (bpe.LONGEST - 2) + "b")) == ["a" + run * (bpe.LONGEST - 2) + "b"]
    assert max(map(len, bpe._without_long_words(run * 100_000))) == bpe.LONGEST


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d | {"decoder": {"type": "Sequence", "decoders": 5}}, "is not a tokenizer that can be used"),
        (lambda d: d | {"pre_tokenizer": {"type": "nothing"}}, "is not a tokenizer that can be used"),
        (lambda d: d | {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "has no tokens"),
        (lambda d: d | {"model": d["model"] | {"vocab": {"a": 4_000_000_000}}}, "has an id of 4000000000"),
        (lambda d: d | {"model": d["model"] | {"merges": [["a"]]}}, "is not a tokenizer that can be used"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], complaint: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(change(json.loads(byte_tokenizer().rules.to_str()))))
    with pytest.raises(UsageError, match=complaint) as caught:
        TextTokenizer.load(path)
    assert str(caught.value).isprintable()


def test_an_end_token_that_is_no_text_and_endless_nesting_are_refused(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path)
    for named in (5, ["a"], "\ud800"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}))
        with pytest.raises(UsageError, match="names an end token that is no text"):
            TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"tokenizer\.json is not JSON: .*nested"):
        TextTokenizer.load(tmp_path)
