"""Questions with their answers as a dataset: plain text, of which the answers alone are learnt."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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

WHY = "\nWhy? "
"""What stands between a question and a teacher's rationale."""

LINE = '{"prompt": "7 + 5 =", "answer": " 12\\\\n"}'


class ExplainedQuestion(NamedTuple):
    """A question with its answer. place: where it stands. rationales: by the name of the teacher that wrote each."""

    place: str
    prompt: str
    answer: str
    rationales: dict[str, str]


def answer_lines(where: str) -> Iterator[tuple[str, str, str]]:
    """(where it stands, the prompt, the answer) of each line of the JSON lines files that a path, folder or glob names.

    Raises: UsageError, with the file and the line, for one that lacks either.
    """
    return (one[:3] for one in questions(where))


def questions(where: str) -> Iterator[ExplainedQuestion]:
    """The questions of JSON lines files. Raises: as `answer_lines`, and where 'rationales' are not texts by their teachers."""
    for place, row in json_rows(where):
        prompt, answer = (row.get(key) if isinstance(row, dict) else None for key in ("prompt", "answer"))
        if not isinstance(prompt, str) or not isinstance(answer, str) or not answer:
            raise UsageError(f"{place} is no question with an answer: a line is like {LINE}")
        said = row.get("rationales", {})
        if not isinstance(said, dict) or not all(isinstance(text, str) and text for text in said.values()):
            raise UsageError(
                f'{place}: rationales are texts by the names of teachers, {{"large": "Five and seven are ..."}}'
            )
        try:
            "".join((prompt, answer, *said, *said.values())).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{place} has half of a surrogate pair, which is no text") from None
        yield ExplainedQuestion(place, prompt, answer, said)


def _document(tokenizer: TextTokenizer, asked: str, said: str, mark: int) -> Learnt:
    """What is asked, read, and what is said, learnt and marked so."""
    first, last = tokenizer.encode(asked), tokenizer.encode(said)
    return Learnt([*first, *last], [0] * len(first) + [mark] * len(last))


def prepare_answers(config: DataConfig) -> Dataset:
    """The questions of a corpus, each followed by its answer; tokens of the question are read and not learnt.

    The two are cut into tokens apart, as they are when the answer is to be written. The end token after an answer is learnt, too.
    Where a line has 'rationales', each is a document of its own behind it, of the training split alone: the question, `WHY`, the
    rationale. What is learnt of the answers is marked 1, of the first teacher 2, and so on, in order of the teachers' names.
    Raises: UsageError, with file and line, where one is no such thing; and where the tokenizer is to be trained.
    """
    if config.tokenizer == "bpe":
        raise UsageError("data.kind = answers goes with data.tokenizer = bytes, or a tokenizer that exists")
    bytes_ = config.tokenizer == "bytes"
    tokenizer = byte_tokenizer() if bytes_ else TextTokenizer.load(Path(config.tokenizer).expanduser())
    documents, keys, seen = list[Learnt](), list[str](), 0
    known = list(questions(config.corpus))
    teachers = {
        name: number for number, name in enumerate(sorted({name for one in known for name in one.rationales}), 2)
    }
    reasons = list[list[Learnt]]()
    for _, prompt, answer, rationales in known:
        documents.append(_document(tokenizer, prompt, answer, 1))
        whys = sorted(rationales.items())
        reasons.append([_document(tokenizer, prompt + WHY, text, teachers[name]) for name, text in whys])
        keys.append(json.dumps([prompt, answer, *map(list, whys)], ensure_ascii=False))
        seen += len(answer.encode())
    if not documents:
        raise UsageError(f"corpus '{config.corpus}' holds no questions")
    if len(teachers) > 200:
        raise UsageError(f"corpus '{config.corpus}' has rationales of {len(teachers)} teachers, and 200 are the most")
    found = survey(keys, config.heldout, 0)
    held = [found.holds_out(digest(key)) for key in keys]
    trained = [(one, *whys) for one, whys, out in zip(documents, reasons, held, strict=True) if not out]
    train = MarkedStore([each for group in trained for each in group], tokenizer.end)
    heldout = MarkedStore([one for one, out in zip(documents, held, strict=True) if out], tokenizer.end)
    learnt = sum(sum(one.counted) + 1 for one in documents)
    if teachers:
        log.info(f"{sum(map(len, reasons)):,} rationales, of teachers in this order: {', '.join(teachers)}")
    log.info(
        f"{len(documents):,} questions, {sum(held):,} of them held out; {learnt:,} of {len(train) + len(heldout):,} tokens are of "
        f"answers, {seen / learnt:.2f} bytes each"
    )
    whole = json.dumps(["answers", tokenizer.fingerprint, train.fingerprint(), heldout.fingerprint()])
    return Dataset(train, heldout, tokenizer, hashlib.sha256(whole.encode()).hexdigest())
