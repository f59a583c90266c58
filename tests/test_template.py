"""A chat template is somebody else's program: useful ones render as Jinja renders them, hostile ones end at once."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from popi_edge.errors import ModelError
from popi_edge.models import template
from popi_edge.models.gguf import Gguf
from popi_edge.models.template import render

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Why? "}]
NAMES: dict[str, Any] = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
USEFUL = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0].content + '\n\n' %}"
             "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
             "{% for m in rest %}{{ '<start_of_turn>' ~ m.role ~ '\n' ~ (first if loop.first else '') ~ "
             "(m.content | trim) ~ '<end_of_turn>\n' }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, text='') %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}"
                 "{% set ns.text = ns.text ~ loop.index0 ~ m.content.strip().split(' ')[-1] %}{% endfor %}"
                 "{{ ns.n }}{{ ns.text }}{{ (ns.n % 2 == 0) }}",
    "macro": "{% macro turn(m) %}[{{ m.role | upper }}: {{ m['content'] | trim }}]{% endmacro %}"
             "{%- for m in messages -%}{{ turn(m) }}{%- endfor -%}",
    "tools": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}"
             "{{ messages | length }}{{ ([1, 2] + [3]) | join }}",
    "tests": "{% for a, b in [('x', 1), ('y', 2)] %}{{ a }}{{ b }}{% endfor %}{{ 'x' in ['x'] }}{{ not none }}"
             "{{ messages[0] is mapping }}{{ nothing is defined }}{% if 1 < 2 <= 2 and 'a' != 'b' %}yes{% endif %}",
    "blocks": "{% set x %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ x }}{{ x | replace('s', 'z') }}"
              "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "break": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
}  # fmt: skip
DOUBLE = 60
HOSTILE = {
    "loops": "{% for a in range(4000) %}{% for b in range(4000) %}{% for c in range(4000) %}{% endfor %}{% endfor %}"
             "{% endfor %}",
    "filtered": "{% for a in range(4000) %}{% for b in range(4000) if false %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "mapped": "{% for a in range(4000) %}{{ range(4000) | map('string') | join | length }}{% endfor %}",
    "macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "recursive": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "brackets": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "ifs": "{% if 1 %}" * 1_400 + "{% endif %}" * 1_400,
    "lists": "{{ " + "[" * 900 + "]" * 900 + " }}",
    "parts": "{{ x }}" * 4_000,
    "product": "{{ 'a' * 1000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "number": "{% set n = namespace(x=3) %}{% for i in range(4000) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "padding": "{{ 'a'.center(1000000000) }}{{ 'a'.zfill(1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "filter": "{{ '%1000000000d' | format(1) }}",
    "sum": "{% set x='aaaaaaaaaaaaaaaa' %}" + "{% set x=x+x %}" * DOUBLE + "{{x}}",
    "joined": "{% set x='aaaaaaaaaaaaaaaa' %}" + "{% set x=x~x %}" * DOUBLE + "{{x}}",
    "captured": "{% set x='aaaaaaaaaaaaaaaa' %}" + "{% set x %}{{x}}{{x}}{% endset %}" * DOUBLE + "{{x}}",
    "replaced": "{% set x='aaaaaaaaaaaaaaaa' %}" + "{% set x=x|replace('a', 'aa') %}" * DOUBLE + "{{x}}",
    "method": "{% set x='aaaaaaaaaaaaaaaa' %}" + "{% set x=x.replace('a', 'aa') %}" * DOUBLE + "{{x}}",
    "laughs": "{% set a=['lol'] %}" + "{% set a=[a,a] %}" * DOUBLE + "{{ a == [a] }}{{ a | tojson }}",
    "pairs": "{% set a={'x': 1} %}" + "{% set a={'x': a, 'y': a} %}" * DOUBLE + "{{ a | string }}",
    "dict": "{% set a='x' %}" + "{% set a=dict(x=a, y=a) %}" * DOUBLE + "{{ a }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "global": "{{ range.__globals__ }}{{ namespace.__init__.__globals__ }}",
    "import": "{% import 'x' as y %}",
    "include": "{% include '/etc/passwd' %}",
    "generator": "{{ lipsum(n=100000) }}",
    "zero": "{{ 1 / 0 }}",
    "missing": "{{ messages[99].x.y }}",
    "cut": "{% if",
    "long": "x" * 100_000,
    "nothing": " \n",
    "raised": "{{ raise_exception('no system\nmessage') }}",
}  # fmt: skip


@pytest.mark.parametrize("name", list(USEFUL))
def test_a_useful_template_renders_as_jinja_renders_it(name: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    want = plain.from_string(USEFUL[name]).render(messages=CHAT, **NAMES)
    assert render(USEFUL[name], CHAT, **NAMES) == want != ""


def test_the_base_s_own_template(base: Path) -> None:
    text = Gguf(base).fields["tokenizer.chat_template"]
    want = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    assert render(text, CHAT, **NAMES) == want.render(messages=CHAT, **NAMES)


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_template_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as e:
        render(HOSTILE[name], CHAT, **NAMES)
    assert "\n" not in str(e.value) and len(str(e.value)) < 250


def test_what_a_refused_template_leaves_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace of somebody else's, a debugger's say, is in place again; another thread never had ours."""
    seen: list[Any] = []
    monkeypatch.setattr(template.Sandbox, "_raise", staticmethod(lambda m: seen.append(_other_s_trace()) or str(m)))
    other = lambda *_: None  # noqa: E731
    before = sys.gettrace()
    sys.settrace(other)
    try:
        render("{{ raise_exception('x') }}", CHAT)
        with pytest.raises(ModelError):
            render(HOSTILE["loops"], CHAT)
        assert sys.gettrace() is other
    finally:
        sys.settrace(before)
    assert seen == [None]


def _other_s_trace() -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(sys.gettrace()))
    thread.start()
    thread.join()
    return found[0]
