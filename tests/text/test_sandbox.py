"""A hostile template neither gets out of the sandbox, nor hangs, nor fills the memory."""

import tracemalloc

import pytest

from vila_jax.errors import CheckpointError, VilaError
from vila_jax.text import sandbox
from vila_jax.text.template import render_chat

MESSAGES = [{"role": "user", "content": "hello"}]
QUICK = sandbox.TemplateLimits(cpu_seconds=0.1)
SMALL = sandbox.TemplateLimits(output_chars=1 << 12, work_chars=1 << 16)


def attempt(template, limits=SMALL):
    return render_chat(MESSAGES, template, limits=limits)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ raise_exception.__call__.__self__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__.__base__ }}",
        "{{ '{0.__class__.__base__}'.format(1).x }}",
        "{{ ('{0.__class__}' | attr('format'))(1).x }}",
        "{{ ['{0.__class__}'] | map('format', 1) | first }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace({'__class__': 1}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends '/etc/passwd' %}",
    ],
)
def test_nothing_gets_out(template):
    try:
        text = attempt(template)
    except CheckpointError:
        return
    # What is not refused is an undefined value, that prints as nothing, or text that was never evaluated.
    assert not any(word in text for word in ("class", "object at", "builtins", "function", "root:"))


def test_messages_are_not_changed():
    attempt("{% set messages = [] %}{% for m in messages %}{% set m = 1 %}{% endfor %}")
    assert MESSAGES == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [0] recursive %}{% if loop.depth < 30 %}{{ loop(range(99)) }}{% endif %}{% endfor %}",
        "{{ range(100000) | select('in', [-1] * 100000) | list }}",
        "{% for i in range(100000) | map('string') | map('upper') | map('title') %}{{ loop.length }}{% endfor %}",
    ],
)
def test_endless_work_is_stopped(template):
    with pytest.raises(CheckpointError, match=r"stopped: it computes for more than 0\.1 seconds"):
        attempt(template, QUICK)


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ 1" + " + 1" * 5000 + " }}",
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{% set ns = namespace() %}{% for i in range(1200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ],
)
def test_endless_depth_is_an_error(template):
    with pytest.raises(CheckpointError):
        attempt(template)


@pytest.mark.parametrize(
    "template",
    [
        # operators
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{% set n = messages | length * 10 ** 9 %}{{ ([0] * n) | length }}",
        "{{ (messages | length + 9) ** (10 ** 7) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ ('%s' * 1000) % ((('a' * 1000),) * 1000) }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        # methods
        "{{ 'a'.center(999999999) }}",
        "{{ 'a'.ljust(999999999) | length }}",
        "{{ ('a' | attr('zfill'))(999999999) }}",
        "{{ ('\t' * 1000).expandtabs(99999) }}",
        "{{ ('a' * 1000).translate({97: 'b' * 1000}) }}",
        "{{ ('a' * 1000).replace('a', 'b' * 1000) }}",
        "{{ ('a' * 1000).join(['b'] * 1000) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=999999999) }}",
        "{{ '{x:999999999}'.format_map({'x': 1}) }}",
        "{{ (5).to_bytes(999999999, 'big') }}",
        # filters
        "{{ 'a' | center(999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ ('a\n' * 1000) | indent(99999) }}",
        "{{ ('a\n' * 1000) | indent('b' * 1000) }}",
        "{{ ('a' * 1000) | replace('a', 'b' * 1000) }}",
        "{{ (['b'] * 1000) | join('a' * 1000) }}",
        "{{ range(1000) | map(attribute='none', default='a' * 1000) | join }}",
        "{{ [1] | batch(999999999, 'x') | list }}",
        "{{ [1] | slice(999999999) | list }}",
        "{{ [[1]] | tojson(indent=999999999) }}",
        "{{ 1.5 | round(999999999) }}",
        "{{ ([[1]] * 10000) | sum(start=[]) }}",
        # values that are small, and large when they are printed
        "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}",
        "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = ns.x + (ns.x, ns.x) %}{% endfor %}",
        # many values, each of allowed size
        "{% set b = 'a' * 10000 %}{% for i in range(1000) %}{{ b }}{% endfor %}",
        "{% set b = 'a' * 10000 %}{% set c %}{% for i in range(1000) %}{{ b }}{% endfor %}{% endset %}",
        "{% set b = 'a' * 10000 %}{% macro f() %}{% for i in range(1000) %}{{ b }}{% endfor %}{% endmacro %}{{ f() }}",
        "{% set b = 'a' * 10000 %}{% set ns = namespace(l=[]) %}"
        "{% for i in range(1000) %}{% set ns.l = ns.l + [b[i:]] %}{% endfor %}",
        "{% set b = 'a' * 10000 %}{% for i in range(1000) %}{% set c = b.upper() %}{% endfor %}",
        "{{ strftime_now('%Y' * 1000) }}",
    ],
)
def test_memory_stays_small(template):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="the template was stopped"):
            attempt(template)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_a_range_of_any_length_is_not_allowed():
    with pytest.raises(CheckpointError, match="Range too big"):
        attempt("{% for i in range(10 ** 12) %}{% endfor %}")


def test_a_large_template_is_not_compiled():
    with pytest.raises(CheckpointError, match=r"300,000 characters long, more than 262,144"):
        attempt("x" * 300_000)


@pytest.mark.parametrize("name", ["urlize", "striptags", "xmlattr", "pprint", "wordwrap"])
def test_filters_that_cannot_be_bounded_are_left_out(name):
    with pytest.raises(CheckpointError, match=f"No filter named '{name}'"):
        attempt("{{ 'a' | " + name + " }}")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ ('a' * 100) | length }}", "100"),
        ("{{ '%d items of %s' % (1700000000, 'x' * 1000) }}", "1700000000 items of x"),
        ("{{ '{:,} {}'.format(1700000000, 'x' * 1000) }}", "1,700,000,000 x"),
        ("{{ {'created': 1700000000} | tojson(indent=4) }}", '{\n    "created": 1700000000'),
        ("{{ ('a\n' * 1000) | replace('\n', '\n    ') | length }}", "6000"),
        ("{{ 2 ** 64 // 3 }}", "6148914691236517205"),
        ("{{ 5 * 3.5 - 2 / 4 }}", "17.0"),
        ("{{ ([messages] * 3) | length }}", "3"),
    ],
)
def test_ordinary_work_is_not_refused(template, expected):
    assert attempt(template).startswith(expected)


def test_a_long_conversation_fits_the_default_limits():
    messages = [{"role": role, "content": "word " * 2000} for _ in range(100) for role in ("user", "assistant")]
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' + message['content'] | trim }}"
        "{% else %}{{ 'ASSISTANT: ' + message['content'].strip() ~ eos_token }}{% endif %}{% endfor %}"
    )
    text = render_chat(messages, template, special_tokens={"eos_token": "</s>"})
    assert text.count("word") == 400_000 and text.count("</s>") == 100


def test_limits_hold_for_each_rendering_anew():
    template = "{% for i in range(200) %}{{ 'abcdefghij' * 100 }}{% endfor %}"
    limits = sandbox.TemplateLimits(output_chars=1 << 18, work_chars=250_000)
    first = render_chat(MESSAGES, template, limits=limits)
    assert render_chat(MESSAGES, template, limits=limits) == first and len(first) == 200_000
    with pytest.raises(VilaError):
        render_chat(MESSAGES, template * 2, limits=limits)
