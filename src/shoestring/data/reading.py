"""One reading of a corpus: bytes become text, and what cannot become text is refused, replaced or skipped, and counted."""

import codecs
import io
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shoestring.data.config import TextOptions
from shoestring.data.opening import BLOCK
from shoestring.data.passages import PASSAGE, passages
from shoestring.errors import UsageError

READER = __name__
"""The logger that tells what was left out, replaced or cut."""

log = logging.getLogger(READER)

LOOKED_AT = 8192
"""Characters at the beginning of a file that tell whether it is text."""

BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks and the encodings they tell; UTF-32 stands first, as its mark begins with that of UTF-16."""

SIGNATURES = {b"%PDF-": "a PDF file"}
"""First bytes of formats which may hold neither NUL nor many control characters."""

MARK = "shoestring.mark"
"""The error handler that puts half a surrogate pair in the place of bytes that stand for nothing: no text holds one."""

REMEDY = (
    "--data.encoding names another encoding, --data.invalid replace or --data.invalid skip reads the file all the same"
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVALID = re.compile("[\0\ud800-\udfff]")
_CONTROL = re.compile("[\x01-\x06\x0e-\x1a\x1c-\x1f\x7f]")


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(MARK, _mark)


class NotText(UsageError):
    """The file is not text, or not in the encoding it is read in."""


@dataclass
class Places:
    """How often something was found, in how many files, and where first."""

    count: int = 0
    files: set[str] = field(default_factory=set)
    first: list[str] = field(default_factory=list)

    def add(self, path: str, where: str, count: int = 1) -> None:
        self.count += count
        self.files.add(path)
        if len(self.first) < 3:
            self.first.append(f"{path}, {where}")

    def __str__(self) -> str:
        more = " ..." if self.count > len(self.first) else ""
        return f"in {len(self.files)} file{'s' if len(self.files) > 1 else ''}: {'; '.join(self.first)}{more}"


class TextReading:
    """What the formats read text with: how it is encoded, what is done where it is not, and what was met so far.

    options: of the corpus. replaced, skipped: places of invalid text. cut: long documents, and into how many.
    """

    def __init__(self, options: TextOptions | None = None) -> None:
        self.options = options or TextOptions()
        self.replaced, self.skipped = Places(), Places()
        self.left_out: list[str] = []
        self.cut = self.cut_into = 0

    def text(self, file: BinaryIO, path: Path) -> Iterator[str]:
        """The text of an open file in blocks of whole lines, but for the end of a line longer than a block.

        Raises: NotText where its beginning looks like a binary file; also where a character is invalid, with `invalid`
        = 'refuse', after what comes before it.
        """
        encoding = self._encoding(file)
        decoder = codecs.getincrementaldecoder(encoding)(MARK)
        head, line, held = True, 1, ""
        while True:
            block = file.read(BLOCK)
            try:
                held += decoder.decode(block, final=not block)
            except UnicodeError as error:  # of the whole: it lacks the mark that tells its order of bytes
                raise NotText(f"{path} is not {_shown(encoding)} text: {error}") from None
            if head:
                held = held.removeprefix("\ufeff")
                self._require_text(held, file, path, encoding)
                head = False
            cut = len(held) if not block or len(held) > 2 * BLOCK else held.rfind("\n") + 1
            whole, held = held[:cut], held[cut:]
            yield self._valid(whole, path, line, encoding)
            line += whole.count("\n")
            if not block:
                return

    def lines(self, file: BinaryIO, path: Path) -> Iterator[str]:
        """The lines of an open file, ended by a line feed each; what is invalid in them is marked, for `value` to meet."""
        wrapped = io.TextIOWrapper(file, self._encoding(file), MARK, newline="\n")
        try:
            for number, line in enumerate(wrapped):
                yield line if number else line.removeprefix("\ufeff")
        except UnicodeError as error:
            raise NotText(f"{path} is not {_shown(self.options.encoding)} text: {error}") from None

    def value(self, found: str | bytes, path: Path | str, where: str) -> str | None:
        """A document that stands in a field, as text; None where it is invalid and is to be skipped.

        Raises: UsageError where it is invalid and `invalid` = 'refuse'.
        """
        if isinstance(found, bytes):
            try:
                found = found.decode(self._named(), MARK)
            except UnicodeError as error:
                raise UsageError(f"{path}, {where}: not {_shown(self._named())} text: {error}") from None
        first = _SURROGATE.search(found)
        if first is None:
            return found
        if self.options.invalid == "replace":
            text, count = _SURROGATE.subn("\ufffd", found)
            self.replaced.add(str(path), where, count)
            return text
        if self.options.invalid == "skip":
            self.skipped.add(str(path), where)
            return None
        raise UsageError(f"{path}, {where}, character {first.start() + 1}: {_told(first[0], self._named())} ({REMEDY})")

    def broken(self, path: Path, where: str, why: str) -> None:
        """A document that cannot be parsed is skipped, with `invalid` = 'skip'. Raises: UsageError otherwise."""
        if self.options.invalid != "skip":
            raise UsageError(f"{path}, {where}: {why} (--data.invalid skip leaves such lines out)")
        self.skipped.add(str(path), where)

    def documents(self, found: Iterable[str | None]) -> Iterator[str]:
        """The documents that are not empty, long ones cut into passages."""
        for document in found:
            if document and len(document) > PASSAGE:
                pieces = list(passages([document], PASSAGE))
                self.cut += 1
                self.cut_into += len(pieces)
                yield from pieces
            elif document:
                yield document

    def report(self, files: int = 1) -> None:
        """Log what was left out, replaced, skipped and cut. files: how many there were to read."""
        if self.left_out:
            log.warning(
                f"left out {len(self.left_out)} of {files} files that are not text; the first: {self.left_out[0]}"
            )
        if self.replaced.count:
            log.warning(f"replaced {self.replaced.count:,} invalid places by U+FFFD {self.replaced}")
        if self.skipped.count:
            log.warning(f"skipped {self.skipped.count:,} lines or documents that are not valid text {self.skipped}")
        if self.cut:
            log.info(f"cut {self.cut:,} documents of more than {PASSAGE:,} characters into {self.cut_into:,}")

    def _named(self) -> str:
        return "utf-8" if self.options.encoding == "auto" else self.options.encoding

    def _encoding(self, file: BinaryIO) -> str:
        """The encoding a file is read in: as named, or as its byte order mark tells, or else UTF-8."""
        if self.options.encoding != "auto":
            return self.options.encoding
        head = _peek(file)
        return next((encoding for bom, encoding in BOMS.items() if head.startswith(bom)), "utf-8")

    def _require_text(self, beginning: str, file: BinaryIO, path: Path, encoding: str) -> None:
        """Raises: NotText for a beginning that no text has, whatever is done about single invalid characters."""
        head = beginning[:LOOKED_AT]
        for signature, what in SIGNATURES.items():
            if head.startswith(signature.decode()):
                raise NotText(f"{path} is not text: it is {what}")
        if "\0" in head:
            raise NotText(f"{path} is not text: it holds NUL bytes")
        if len(head) >= 32:
            control, invalid = len(_CONTROL.findall(head)) / len(head), len(_SURROGATE.findall(head)) / len(head)
            if control > 0.05:
                raise NotText(f"{path} is not text: {control:.0%} of its beginning are control characters")
            if invalid > 0.3:
                raise NotText(
                    f"{path} is not {_shown(encoding)} text: {invalid:.0%} of its beginning stand for nothing ({REMEDY})"
                )

    def _valid(self, text: str, path: Path, line: int, encoding: str) -> str:
        """Whole lines without what is invalid. line: the number of the first."""
        first = _INVALID.search(text)
        if first is None:
            return text
        if self.options.invalid == "refuse":
            where = f"line {line + text.count(chr(10), 0, first.start()):,}, character"
            where += f" {first.start() - text.rfind(chr(10), 0, first.start()):,}"
            if first[0] == "\0":
                raise NotText(f"{path} is not text: it holds NUL bytes, the first at {where} ({REMEDY})")
            raise NotText(f"{path} is not {_shown(encoding)} text: {_told(first[0], encoding)}, at {where} ({REMEDY})")
        kept = []
        for number, row in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text), line):
            count = len(_INVALID.findall(row))
            if count and self.options.invalid == "skip":
                self.skipped.add(str(path), f"line {number:,}")
            elif count:
                self.replaced.add(str(path), f"line {number:,}", count)
                kept.append(_INVALID.sub("\ufffd", row))
            else:
                kept.append(row)
        return "".join(kept)


def _peek(file: BinaryIO) -> bytes:
    return file.peek(4)[:4] if isinstance(file, io.BufferedReader) else b""


def _shown(encoding: str) -> str:
    return encoding.upper()


def _told(mark: str, encoding: str) -> str:
    """What a mark, or half a surrogate pair, says of the text."""
    byte = ord(mark) - 0xDC00
    if 0 <= byte < 256:
        return f"byte 0x{byte:02x} stands for nothing in {_shown(encoding)}"
    return "it holds half of a surrogate pair"
