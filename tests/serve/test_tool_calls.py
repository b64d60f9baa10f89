"""Calls of tools in every known form, cut at every place, and what is no call."""

import json
from typing import Any

import pytest

from shoestring.serve.tool_calls import MOST_LETTERS, Call, MarkedStream, ToolReader, calls_of, format_of

NAMES = {"look", "add"}
QWEN, MISTRAL, LLAMA = "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
LOOK: tuple[str, dict[str, Any]] = ("look", {"at": "a </b> {"})
ADD: tuple[str, dict[str, Any]] = ("add", {"a": 1, "b": [2]})

# (in the template, the answer, what is said, what is called)
CASES: list[tuple[str, str, str, list[tuple[str, dict[str, Any]]]]] = [
    (QWEN, 'Well. <tool_call>\n{"name": "look", "arguments": {"at": "a </b> {"}}\n</tool_call>', "Well. ", [LOOK]),
    (QWEN, '<tool_call>[{"name": "look", "arguments": {"at": "a </b> {"}}, {"name": "add", "arguments": '
     '{"a": 1, "b": [2]}}]</tool_call>\n', "", [LOOK, ADD]),
    (QWEN, '<tool_call>{"name": "look", "arguments": "{\\"at\\": \\"a </b> {\\"}"}</tool_call>\n<tool_call>{"name": "add", '
     '"arguments": {"a": 1, "b": [2]}}</tool_call>', "", [LOOK, ADD]),
    (QWEN, '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}', "", [ADD]),  # it ended before the mark
    (QWEN, '<tool_call>{"name": "fly"}</tool_call>', '<tool_call>{"name": "fly"}</tool_call>', []),
    (QWEN, "a < b <tool <tool_call>no JSON</tool_call> c", "a < b <tool <tool_call>no JSON</tool_call> c", []),
    (QWEN, '{"name": "look", "arguments": {}}', '{"name": "look", "arguments": {}}', []),
    (QWEN, "<tool_call>{", "<tool_call>{", []),
    (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": [2]}}]', "", [ADD]),
    (LLAMA, '{"name": "add", "parameters": {"a": 1, "b": [2]}}', "", [ADD]),
    (LLAMA, '<|python_tag|>{"name": "look", "parameters": {"at": "a </b> {"}}; {"name": "add", "parameters": '
     '{"a": 1, "b": [2]}}', "", [LOOK, ADD]),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, "The answer: {}", "The answer: {}", []),
]  # fmt: skip


@pytest.mark.parametrize(("mark", "answer", "said", "called"), CASES)
def test_calls_are_found_however_the_answer_is_cut(
    mark: str, answer: str, said: str, called: list[tuple[str, dict[str, Any]]]
) -> None:
    form = format_of(f"{{{{ '{mark}' }}}}")
    assert form is not None
    for size in (1, 2, 3, 7, len(answer)):
        reader, text = ToolReader(form, NAMES), ""
        for start in range(0, len(answer), size):
            text += reader.push(answer[start : start + size])[0]
            assert answer.startswith(text)
        text += reader.finish()[0]
        assert (text, [(each.name, json.loads(each.arguments)) for each in reader.calls]) == (said, called)
    assert len({each.identity for each in reader.calls}) == len(called)


def test_text_is_told_at_once_and_not_held_for_ever() -> None:
    form = format_of(QWEN)
    assert form is not None
    reader = ToolReader(form, NAMES)
    assert reader.push("a <to")[0] == "a "
    assert reader.push("y>")[0] == "<toy>"
    reader.push("<tool_call>{")
    assert len(reader.push("x" * (MOST_LETTERS + 1))[0]) == MOST_LETTERS + 13
    assert reader.push("more")[0] == "more"


def test_what_is_no_call() -> None:
    assert format_of(None) is None
    assert format_of("{{ messages }}") is None
    for text in ("", "7", "[]", '{"name": ["look"]}', '{"name": "look", "arguments": 7}', "[" * 100_000):
        assert calls_of(text, NAMES) is None
    assert calls_of('{"name": "look"}', NAMES) is not None
    assert Call("look", "{}", "x").as_dict(2)["index"] == 2


def test_marks_that_are_special_tokens_are_written_out() -> None:
    class Letters:
        def push(self, token: int) -> str:
            return chr(token) if token < 128 else ""

        def finish(self) -> str:
            return ""

    stream = MarkedStream(Letters(), {200: "[TOOL_CALLS]"})
    assert "".join(map(stream.push, (65, 200, 201, 66))) + stream.finish() == "A[TOOL_CALLS]B"
