"""SentencePiece models, trained by the package of that name, which is also what ids are compared with."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def tokenizer_model(folder: Path, kind: str, texts: Sequence[str], vocabulary: int, **options: Any) -> Any:
    """Trains a model on texts, writes it to `folder` as tokenizer.model, and returns SentencePiece's own processor of it."""
    package = pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    made = io.BytesIO()
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    given = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
    }
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, model_type=kind, vocab_size=vocabulary, **{**given, **options}
    )
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    return package.SentencePieceProcessor(model_proto=made.getvalue())
