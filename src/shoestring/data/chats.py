"""Chats as a dataset: whole conversations, of which the answers alone are learnt."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoestring.data.chat import Chat, Learnt, Message
from shoestring.data.chat_files import Preference, chat_lines, preference_lines
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.return_commands import conditioned
from shoestring.data.store import TokenStore
from shoestring.data.survey import digest, survey
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError

log = logging.getLogger(__name__)


class MarkedStore(TokenStore):
    """A store in memory whose tokens are marked: only some are to be learnt."""

    marks: TokenStore

    def __init__(self, documents: Sequence[Learnt], end: int, text_bytes: int = 0) -> None:
        whole = TokenStore.of([one.ids for one in documents], end, text_bytes)
        super().__init__(whole.shards, whole.document_starts, text_bytes)
        # the end token of a chat ends its last answer
        marks = [mark for one in documents for mark in (*one.counted, (one.counted[-1] if one.counted else 0) or 1)]
        self.marks = TokenStore([np.array(marks, dtype=np.uint8)], self.document_starts, 0)

    def fingerprint(self) -> str:
        """Of its tokens and marks."""
        whole = hashlib.sha256()
        for array in (self.tokens, self.document_starts, self.marks.tokens):
            whole.update(np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()


def chat_of(config: DataConfig) -> Chat:
    """The template that the run's tokenizer is kept with. Raises: UsageError where there is none."""
    tokenizer = tokenizer_of(config)
    if tokenizer.chat_template is None:
        raise UsageError(
            "data.kind = chat: this model has no chat template, as models that were tuned to answer have; put one beside its "
            "tokenizer as chat_template.jinja"
        )
    return Chat(tokenizer.chat_template, tokenizer)


def tokenizer_of(config: DataConfig) -> TextTokenizer:
    """The tokenizer of chats. Raises: UsageError where it is to be trained."""
    if config.tokenizer in ("bpe", "bytes"):
        raise UsageError(
            f"data.kind = {config.kind} goes by the chat template of a model that exists: give model.base, or data.tokenizer "
            "with a chat_template.jinja beside it"
        )
    return TextTokenizer.load(Path(config.tokenizer).expanduser())


def prepare_chats(config: DataConfig) -> Dataset:
    """The chats of a corpus of JSON lines, as the model's template writes them. They are made anew in every process: a template
    of anybody's is cheap to run, and what it makes is kept nowhere.

    Raises: UsageError, with file and line, where one is no chat, or the template refuses it.
    """
    chat, tokenizer = chat_of(config), tokenizer_of(config)
    documents, keys, seen = list[Learnt](), list[str](), 0
    for place, messages in chat_lines(config.corpus):
        try:
            documents.append(chat.learnt(conditioned(messages, config.returns)))
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from None
        keys.append(_key(messages))
        seen += sum(len(message["content"].encode()) for message in messages if message["role"] == "assistant")
    found = survey(keys, config.heldout, 0)
    held = [found.holds_out(digest(key)) for key in keys]
    train = MarkedStore([one for one, out in zip(documents, held, strict=True) if not out], tokenizer.end)
    heldout = MarkedStore([one for one, out in zip(documents, held, strict=True) if out], tokenizer.end)
    learnt = sum(sum(one.counted) + 1 for one in documents)
    log.info(
        f"{len(documents):,} chats, {sum(held):,} of them held out; {learnt:,} of {len(train) + len(heldout):,} tokens are of "
        f"answers, {seen / max(learnt, 1):.2f} bytes each"
    )
    whole = json.dumps(["chats", tokenizer.fingerprint, train.fingerprint(), heldout.fingerprint()])
    return Dataset(train, heldout, tokenizer, hashlib.sha256(whole.encode()).hexdigest())


def preferences(config: DataConfig) -> list[tuple[Learnt, Learnt]]:
    """Pairs of a corpus of JSON lines: the chat with the answer that was chosen, and with the one that was not. Only that answer
    is marked. Raises: as `prepare_chats`."""
    chat, found = chat_of(config), []
    for place, pair in preference_lines(config.corpus):
        try:
            found.append((_answered(chat, pair, pair.chosen), _answered(chat, pair, pair.rejected)))
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from None
    return found


def _answered(chat: Chat, pair: Preference, answer: Message) -> Learnt:
    made, before = chat.learnt((*pair.asked, answer)), len(chat.ids(pair.asked))
    return Learnt(made.ids, [mark and place >= before for place, mark in enumerate(made.counted)])


def _key(messages: Sequence[Message]) -> str:
    """What a chat is known by: copies fall on one side of the split."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
