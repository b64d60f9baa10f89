"""The settings of the kernels: every block is worked on once, the table on disk comes back, a damaged one is said to be so."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.errors import ShoestringError
from shoestring.lowbit.gpu import table
from shoestring.lowbit.gpu.config import Config, candidates, shares, token_block, untuned
from shoestring.lowbit.gpu.table import Key

SIZES = {
    "rows": st.integers(1, 200000),
    "blocks": st.integers(1, 600),
    "tokens": st.integers(1, 300),
    "grouped": st.booleans(),
    "processors": st.integers(1, 200),
}


@given(**SIZES)
def test_all_blocks_are_shared_out(rows: int, blocks: int, tokens: int, grouped: bool, processors: int) -> None:
    tried = candidates(rows, blocks, tokens, grouped, processors)
    assert tried[0] == untuned(rows, blocks, tokens, grouped, processors)
    assert len(tried) <= 20
    for config in tried:
        share, splits = shares(blocks, config)
        assert share % config.slices == 0
        assert share * (splits - 1) < blocks <= share * splits
        assert splits <= config.splits


def test_token_blocks() -> None:
    assert [token_block(tokens) for tokens in (1, 8, 9, 16, 17, 33, 64, 65, 1000)] == [8, 8, 16, 16, 32, 64, 64, 64, 64]


@pytest.mark.parametrize(
    "wrong",
    [("other", 64, 4, 3, 1), ("wide", 48, 4, 3, 1), ("wide", 64, 3, 3, 1), ("wide", 64, 4, 0, 1), ("wide", 8, 4, 3, 1)],
)
def test_settings_that_no_kernel_has(wrong: tuple) -> None:
    with pytest.raises(ShoestringError, match="no kernel has the settings"):
        Config(*wrong)


@pytest.fixture
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setattr(table, "_kept", None)
    monkeypatch.setattr(table.importlib.metadata, "version", lambda name: "9.9")


@pytest.mark.usefixtures("_fresh")
def test_what_was_found_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    key, config = Key(4096, 4096, 1, 3), Config("narrow", 32, 4, 3, 2)
    assert table.tuned("GPU", key) is None
    table.keep("GPU", {key: config})
    table.keep("Other", {key: Config("wide", 64, 4, 3, 1)})
    monkeypatch.setattr(table, "_kept", None)
    assert table.tuned("GPU", key) == config
    assert table.tuned("GPU", Key(4096, 4096, 1, 8)) == config, "tokens of one block share their settings"
    assert table.tuned("GPU", Key(4096, 4096, 1, 9)) is None
    assert table.tuned("GPU", Key(4096, 4096, 1, 1)) is None
    assert table.tuned("GPU", Key(4096, 4096, 1, 3, 8)) is None
    monkeypatch.setattr(table.importlib.metadata, "version", lambda name: "10")
    assert table.tuned("GPU", key) is None, "found with another Triton"


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"b": {"kernel": "narrow"}}}', '{"a": {"b": [1]}}', '{"a": 3}'])
def test_a_damaged_table_is_said_to_be_so(content: str) -> None:
    table.path().write_text(content)
    with pytest.warns(RuntimeWarning, match="is not a table of GPU settings, and is not used"):
        assert table.tuned("GPU", Key(1, 1, 1, 1)) is None
