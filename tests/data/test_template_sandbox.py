"""Chat templates of strangers: what real ones need works as in Jinja, the rest is refused."""

import contextlib
import json
from pathlib import Path

import jinja2.sandbox
import pytest

from dongwu_jax.data import template_sandbox
from dongwu_jax.data.chat_template import ChatTemplate
from dongwu_jax.data.template_sandbox import LimitedSandbox
from dongwu_jax.errors import UserError

MESSAGES = [
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]
USED_BY_MODELS = (
    "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}",
    "{% for m in messages if m['role'] != 'system' %}{{ loop.index0 }}{{ loop.last }}"
    "{{ m['content'] | trim }}{% else %}none{% endfor %}",
    "{% macro line(m, mark='#') %}{{ mark + m.role ~ ': ' ~ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ line(m) }}{% endfor %}{{ line(messages[0], mark='') }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role.upper() }}"
    "{% break %}{% endfor %}{{ messages | length }}{{ messages[1:] | list | length }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ 'a-b'.split('-')[-1] }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list }}{{ 7 % 4 }}{{ 2 ** 8 * 3 }}",
    "{{ '-' * 3 ~ 1 ~ none }}{{ [1] + [2] }}{{ 'x'.replace('x', 'y') }}{{ 'a' | indent(4, true) }}",
    "{% set text %}{{ messages[0].content | upper }}{% endset %}{% filter lower %}{{ text }}"
    "{% endfilter %}",
    "{% for a in [[1, [2]], [3]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "{{ messages is defined }}{{ tools is not defined }}{{ range(3) | list }}{{ dict(a=1) }}",
)
ENDLESS = (
    "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
    "{% for i in range(90000) %}{% for j in range(90000) if j < 0 %}x{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for a in [messages] recursive %}{{ loop([messages, messages]) if loop.depth < 60 }}"
    "{% endfor %}",
)
TOO_LARGE = (
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'x' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ messages | batch(10**10) | list }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{{ '%10000000000d' % 1 }}",
)
WAYS_OUT = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% include '/etc/passwd' %}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
)


def template(folder: Path, source: str) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(source)
    return ChatTemplate(folder)


@pytest.mark.parametrize("source", USED_BY_MODELS)
def test_what_models_use_works_as_in_jinja(source: str) -> None:
    options = {"extensions": ["jinja2.ext.loopcontrols"], "trim_blocks": True}
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(**options).from_string(source)
    ours = LimitedSandbox(**options)
    assert ours.render(ours.load(source), messages=MESSAGES) == plain.render(messages=MESSAGES)


@pytest.mark.parametrize("source", ENDLESS)
def test_templates_without_end_are_stopped(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "_MOST_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"chat_template\.jinja.*for more than 0\.1 seconds"):
        template(tmp_path, source).render(MESSAGES)


@pytest.mark.parametrize("source", TOO_LARGE)
def test_what_is_too_large_is_not_made(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        template(tmp_path, source).render(MESSAGES)


@pytest.mark.parametrize("source", WAYS_OUT)
def test_no_way_leads_out(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    messages = json.loads(json.dumps(MESSAGES))
    text = ""
    with contextlib.suppress(UserError):
        text = template(tmp_path, source).render(messages)
    assert text == ""  # what is undefined writes nothing
    assert messages == MESSAGES
    assert not (tmp_path / "canary").exists()


def test_time_is_given_anew_to_each_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "_MOST_SECONDS", 0.1)
    slow = template(tmp_path, "{% for i in range(messages | length) %}x{% endfor %}")
    with pytest.raises(UserError, match="seconds"):
        template(tmp_path, ENDLESS[0]).render(MESSAGES)
    assert [slow.render(MESSAGES) for _ in range(3)] == ["xxx"] * 3
