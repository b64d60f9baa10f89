"""Tokenizers of other makers: ids as SentencePiece's, every byte counted, and what a text may lose is said."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from shoestring.data import TextTokenizer, train_bpe
from shoestring.data.tokenizer_bytes import SPACE
from shoestring.data.tokenizer_sentencepiece import UNIGRAM, UNKNOWN, Piece, rules_of
from shoestring.errors import UsageError
from tests.base import making
from tests.base.pieces import tokenizer_model

TEXT = "Some words, some 1234 numbers and été, 日本語 😀; def f(x):\n    return x[10]\n\n\n  it's HE'LL  end   "
SOURCE = Path(making.__file__).read_text()
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bpe": ("bpe", {}),
    "unigram": ("unigram", {}),
    "no space before": ("bpe", {"add_dummy_prefix": False}),
    "symbols of the user": ("bpe", {"user_defined_symbols": ["<tool>", SPACE * 2]}),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, Any]:
    """(ours, SentencePiece's own)."""
    folder = tmp_path_factory.mktemp("pieces")
    kind, options = KINDS[request.param]
    processor = tokenizer_model(folder, kind, [SOURCE, TEXT], 400, **options)
    return TextTokenizer.load(folder), processor


letters = st.text() | st.text("ab1 \t\n_.(é日😀\u0301<tol>", max_size=40) | st.sampled_from(SOURCE.splitlines())


def test_ids_are_sentencepiece_s(both: tuple[TextTokenizer, Any]) -> None:
    ours, processor = both
    for text in (TEXT, SOURCE, " a", "  two", "", "x<tool>y", "\u2028 é"):
        assert ours.encode(text) == processor.encode(text), text
    assert ours.end == processor.eos_id()
    assert ours.vocabulary == processor.get_piece_size()


def check_bytes(tokenizer: TextTokenizer, text: str) -> None:
    """A text's ids and the end token count for its bytes, and its ids alone are the text again."""
    found = tokenizer.encode(text)
    assert tokenizer.decode(found) == text
    assert int(tokenizer.byte_lengths[[*found, tokenizer.end]].sum()) == len(text.encode()) - (
        0 if text else tokenizer.prefix
    )
    assert tokenizer.encode_batch([text, text]) == [found, found]
    assert tokenizer.end not in found


@settings(max_examples=150)
@given(text=letters.filter(lambda text: SPACE not in text))
def test_every_byte_is_counted(both: tuple[TextTokenizer, Any], text: str) -> None:
    check_bytes(both[0], text)


def test_saved_it_is_the_same(both: tuple[TextTokenizer, Any], tmp_path: Path) -> None:
    ours, _ = both
    ours.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.fingerprint == ours.fingerprint
    assert again.encode(TEXT) == ours.encode(TEXT)
    assert (again.prefix, again.end, again.token_bytes) == (ours.prefix, ours.end, ours.token_bytes)


def test_what_is_normalised_is_said(tmp_path: Path) -> None:
    processor = tokenizer_model(
        tmp_path, "unigram", [SOURCE, TEXT], 400, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    )
    ours = TextTokenizer.load(tmp_path)
    for text in (TEXT, "ﬁne  ①", "  a  "):
        assert ours.encode(text) == processor.encode(text), text
    assert any("text is changed first (Precompiled, Strip, Replace)" in line for line in ours.caveats)
    found = ours.encode("ﬁne  ①")
    assert ours.decode(found) == "fine 1"
    assert int(ours.byte_lengths[[*found, ours.end]].sum()) == len("fine 1")


SPACED = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
FORMS: dict[str, tuple[Any, Any]] = {
    "legacy": (SPACED, None),
    "first": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "always": (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True)),
    "never": (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
}


def pieces(form: str) -> tokenizers.Tokenizer:
    """A tokenizer.json of SentencePiece's kind, as transformers writes it in one of these forms."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [SPACE, *"helowrd", "he", "ll", "hell", "hello", SPACE + "hello", SPACE + "w", SPACE + SPACE]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), (SPACE, "hello"), (SPACE, "w"), (SPACE, SPACE)]
    ids = {token: place for place, token in enumerate([*vocabulary, *words])}
    made = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    rules = tokenizers.Tokenizer(made)
    normaliser, before = FORMS[form]
    if normaliser:
        rules.normalizer = normaliser
    if before:
        rules.pre_tokenizer = before
    rules.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    rules.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocabulary[:3]])
    return rules


@pytest.mark.parametrize("form", FORMS)
def test_a_space_before_the_text_is_taken_back(form: str, tmp_path: Path) -> None:
    theirs = pieces(form)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = TextTokenizer.load(tmp_path)
    assert ours.prefix == (form != "never")
    assert int(ours.byte_lengths[ours.end]) == -ours.prefix
    for text in ("hello world", "hello  hello", "é\nhello", "</s>", "hello", "", " hello", "  hello "):
        check_bytes(ours, text)
        if (
            not text.startswith(" ") and text != "</s>"
        ):  # the package leaves out the space before one that begins with it
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.encode(" hello") != ours.encode("hello")


def test_special_tokens_are_read_where_they_are_written_out(tmp_path: Path) -> None:
    pieces("never").save(str(tmp_path / "tokenizer.json"))
    ours = TextTokenizer.load(tmp_path)
    assert ours.encode_special("<s>hello</s>") == [1, ours.encode("hello")[0], 2]
    assert ours.encode("</s>") != [2]
    assert ours.begin is None
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "bos_token": {"content": "<s>"}, "add_bos_token": True})
    )
    assert TextTokenizer.load(tmp_path).begin == 1


def changed(path: Path, **changes: Any) -> Path:
    """A byte-level tokenizer.json with other parts."""
    train_bpe([SOURCE], 300).save(path)
    file = path / "tokenizer.json"
    described = json.loads(file.read_text())
    model = changes.pop("model", {})
    described = {**described, **changes, "model": {**described["model"], **model}}
    file.write_text(json.dumps(described))
    return file


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ends of words": ({"model": {"end_of_word_suffix": "</w>"}}, "marks the ends of words"),
    "white space": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "WhitespaceSplit"},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            }
        },
        "loses text: its pre-tokenizer WhitespaceSplit",
    ),
    "removed": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            }
        },
        "loses text: its pre-tokenizer Split",
    ),
    "no bytes": ({"pre_tokenizer": None}, "neither byte-level"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_loses_text_is_refused(what: str, tmp_path: Path) -> None:
    changes, complaint = REFUSED[what]
    with pytest.raises(UsageError, match=complaint):
        TextTokenizer.load(changed(tmp_path, **changes))


def test_words_and_word_pieces_are_refused(tmp_path: Path) -> None:
    rules = tokenizers.Tokenizer(models.WordPiece({"<eos>": 0, "a": 1, "[UNK]": 2}))
    rules.pre_tokenizer, rules.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    rules.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="its model is a WordPiece"):
        TextTokenizer.load(tmp_path)


def test_a_dropout_of_merges_is_left_out(tmp_path: Path) -> None:
    ours = TextTokenizer.load(changed(tmp_path, model={"dropout": 0.9}))
    assert len({tuple(ours.encode(SOURCE)) for _ in range(3)}) == 1


def test_a_byte_level_space_before_the_text_is_taken_back(tmp_path: Path) -> None:
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ours = TextTokenizer.load(changed(tmp_path, pre_tokenizer=step))
    for text in ("a b", " a b", "", "été"):
        check_bytes(ours, text)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.encode("some words") == theirs.encode("some words", add_special_tokens=False).ids


def test_what_text_may_lose_is_said(tmp_path: Path) -> None:
    rules = tokenizers.Tokenizer.from_file(str(changed(tmp_path)))
    rules.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("x"), "y")])
    rules.add_tokens([AddedToken("<mask>", lstrip=True)])
    described = json.loads(rules.to_str())
    del described["model"]["vocab"]["ā"]  # byte 1
    described["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    told = TextTokenizer.load(tmp_path).caveats
    assert told == (
        "white space beside '<mask>' is lost",
        "text is changed first (NFC, Replace), and the bytes are those of the changed text",
        "1 bytes are in no token, and characters that need them lose them (0x01)",
    )
    rules = pieces("never")
    rules.model = models.BPE(vocab={"a": 0, "<unk>": 1, "</s>": 2}, merges=[], unk_token="<unk>")
    (tmp_path / "tokenizer_config.json").unlink()
    rules.save(str(tmp_path / "tokenizer.json"))
    ours = TextTokenizer.load(tmp_path)
    assert "read as the unknown token" in ours.caveats[-1]
    assert int(ours.byte_lengths[ours.encode("aé")].sum()) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "0 pieces"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (b"\xff" * 20, "damaged or cut short"),
        (b"\x08\x05", "field 1 is no message"),
        (b"\x0a\x03\x0a\x01\xff", "can't decode|utf-8"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x04", "of type 4"),
        (b"\x0b\x0a", "no protocol buffer"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x02\x1a\x07\x12\x05\x02\x00\x00\x00x", "table of normalisation, of 5 bytes"),
    ],
)
def test_damaged_models_are_refused_in_one_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        TextTokenizer.load(tmp_path)


def test_pieces_without_one_for_the_unknown_are_refused() -> None:
    pieces = [Piece("a", -1.0), Piece("b", -2.0)]
    with pytest.raises(UsageError, match="has no token for what it does not know"):
        rules_of(pieces, UNIGRAM)
    assert rules_of([Piece("<unk>", 0.0, UNKNOWN), *pieces], UNIGRAM).encode("ab?").ids


def test_a_tokenizer_json_that_the_package_dies_of_is_refused(tmp_path: Path) -> None:
    huge = base64.b64encode(b"\xff\xff\xff\xffabcd").decode()  # the package would ask for 8 GiB
    rules = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")]))
    whole = json.loads(rules.to_str())
    table = {"type": "Precompiled", "precompiled_charsmap": huge}
    for normaliser in (table, {"type": "Sequence", "normalizers": [table]}):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, "normalizer": normaliser}))
        with pytest.raises(UsageError, match="of 8 bytes, is damaged"):
            TextTokenizer.load(tmp_path, end=3)
    whole["model"]["merges"] = [["</s>", "</s>"]]  # no token: the package panics
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(UsageError, match="not a tokenizer that can be used"):
        TextTokenizer.load(tmp_path, end=3)
