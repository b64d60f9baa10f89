"""Questions with their answers as a dataset: plain text, of which the answers alone are learnt."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from shoestring.data.bpe import byte_tokenizer
from shoestring.data.chat import Learnt
from shoestring.data.chat_files import json_rows
from shoestring.data.chats import MarkedStore
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.survey import digest, survey
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError

log = logging.getLogger(__name__)

LINE = '{"prompt": "7 + 5 =", "answer": " 12\\\\n"}'


def answer_lines(where: str) -> Iterator[tuple[str, str, str]]:
    """(where it stands, the prompt, the answer) of each line of the JSON lines files that a path, folder or glob names.

    Raises: UsageError, with the file and the line, for one that lacks either.
    """
    for place, row in json_rows(where):
        prompt, answer = (row.get(key) if isinstance(row, dict) else None for key in ("prompt", "answer"))
        if not isinstance(prompt, str) or not isinstance(answer, str) or not answer:
            raise UsageError(f"{place} is no question with an answer: a line is like {LINE}")
        try:
            (prompt + answer).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{place} has half of a surrogate pair, which is no text") from None
        yield place, prompt, answer


def prepare_answers(config: DataConfig) -> Dataset:
    """The questions of a corpus, each followed by its answer; tokens of the question are read and not learnt.

    The two are cut into tokens apart, as they are when the answer is to be written. The end token after an answer is learnt, too.
    Raises: UsageError, with file and line, where one is no such thing; and where the tokenizer is to be trained.
    """
    if config.tokenizer == "bpe":
        raise UsageError("data.kind = answers goes with data.tokenizer = bytes, or a tokenizer that exists")
    bytes_ = config.tokenizer == "bytes"
    tokenizer = byte_tokenizer() if bytes_ else TextTokenizer.load(Path(config.tokenizer).expanduser())
    documents, keys, seen = list[Learnt](), list[str](), 0
    for _, prompt, answer in answer_lines(config.corpus):
        asked, said = tokenizer.encode(prompt), tokenizer.encode(answer)
        documents.append(Learnt([*asked, *said], [False] * len(asked) + [True] * len(said)))
        keys.append(json.dumps([prompt, answer], ensure_ascii=False))
        seen += len(answer.encode())
    if not documents:
        raise UsageError(f"corpus '{config.corpus}' holds no questions")
    found = survey(keys, config.heldout, 0)
    held = [found.holds_out(digest(key)) for key in keys]
    train = MarkedStore([one for one, out in zip(documents, held, strict=True) if not out], tokenizer.end)
    heldout = MarkedStore([one for one, out in zip(documents, held, strict=True) if out], tokenizer.end)
    learnt = sum(sum(one.counted) + 1 for one in documents)
    log.info(
        f"{len(documents):,} questions, {sum(held):,} of them held out; {learnt:,} of {len(train) + len(heldout):,} tokens are of "
        f"answers, {seen / learnt:.2f} bytes each"
    )
    whole = json.dumps(["answers", tokenizer.fingerprint, train.fingerprint(), heldout.fingerprint()])
    return Dataset(train, heldout, tokenizer, hashlib.sha256(whole.encode()).hexdigest())
