import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.decode.stop_strings import StopStrings

TEXT = st.text(alphabet="ab", max_size=12)


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.lists(TEXT, max_size=6))
def test_pieces_end_where_the_whole_text_would(strings: list[str], pieces: list[str]) -> None:
    stop = StopStrings(strings)
    got = "".join(stop.push(piece) for piece in pieces) + stop.finish()
    whole = "".join(pieces)
    if not stop.found:
        assert got == whole
        assert not any(string in whole for string in strings)
    else:
        assert whole.startswith(got + stop.found)
        assert not any(string in got for string in strings)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopStrings(["<end>", "\n\n"])
    assert [stop.push(piece) for piece in ("a <", "b <en", "d of", "\n", "x", "<end> more", "never")] == [
        "a ", "<b ", "<end of", "", "\nx", "", "",
    ]  # fmt: skip
    assert stop.found == "<end>"
    assert stop.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings([""])
