"""Chat templates render as in transformers; contents reach them in the form that they read."""

import enum
import json

import numpy as np
import pytest
import transformers
from PIL import Image

from vila_jax.errors import CheckpointError, PromptError
from vila_jax.text.styles import STYLES, render_style
from vila_jax.text.template import render, render_chat
from vila_jax.text.tokenizer import Tokenizer

# As published with llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-mistral-7b-hf.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] "
    "+ '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}{{ '[INST] ' }}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '<\\s> ' }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# As published with Meta-Llama-3-8B-Instruct and Qwen2: they read texts, not parts.
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Everything else that templates use.
KITCHEN = """{# a comment #}
{%- macro said(message, loud=false) -%}
  {%- if message.content is string -%}{{ message.content | upper if loud else message.content }}
  {%- else -%}
    {%- for part in message.content if part.type == 'text' -%}{{ part.text }}{{ ', ' if not loop.last }}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(turn=0, last=none, self='x') -%}
{% for message in messages[::-1] %}
  {%- if message.role == 'user' and ns.last is none %}{% set ns.last = messages | length - loop.index %}{% endif %}
{%- endfor %}
{{ bos_token }}{{ ns.last }} {{ ns['turn'] }}
{% for message in messages %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
  {% set ns.turn = ns.turn + 1 %}
  {% if ns.turn > 5 %}{% break %}{% endif %}
  {{ ns.turn }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ message.role ~ ':' ~ said(message, loud=true) }}
  {% call(x) wrapped() %}{{ x }}{% endcall %}
{% endfor %}
{%- set block %}[{{ messages | map(attribute='role') | join('|') }}]{% endset %}
{{ block | indent(2) }} {{ '%s-%05.1f' | format('a', 2.5) }} {{ '{:>4}{x}'.format(1, x='y') }} {{ 7 // 2 ** 1 % 5 }}
{{ messages | tojson(indent=1) }} {{ {'é': [1, 2.5, none, true]} | tojson }} {{ dict(a=1, b='c') }}
{{ range(3) | list }} {{ [3, 1, 2] | sort | first }} {{ ['b', 'a', 'b'] | unique | list }} {{ ('x', 'y') + (1,) }}
{{ 'a b  c'.split() | batch(2, 'z') | list }} {{ 'abcabc'.replace('b', 'é') | replace('c', '<>') | e }}
{{ 1.26 | round(1) }} {{ messages | groupby('role') | map('first') | list }}
{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].role }}
{{ nothing is defined }} {{ nothing | default('d') }} {{ tools is none }} {{ documents }} {{ strftime_now('%%') }}
{{ 'b' in 'abc' }} {{ 'x' * 3 }} {{ 5.0 / 2 - 1 }} {{ -(messages | length) }} {{ 'abc'[1:] }} {{ 'q'.center(5, '*') }}
{% if add_generation_prompt %}go{% endif %}
""".replace("{%- set ns", "{%- macro wrapped() -%}<{{ caller('in') }}>{%- endmacro -%}\n{%- set ns")

TEXTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is {{ this }}? é😀 "},
    {"role": "assistant", "content": "A <b>cat</b>."},
    {"role": "user", "content": "Sure?"},
]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And"}, {"type": "image"}, {"type": "text", "text": "this?"}],
    },
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@pytest.fixture(scope="module")
def oracle(folders):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folders / "hired")
    return lambda messages, template, go: tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=go
    )


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # in the published template
@pytest.mark.parametrize("go", [True, False])
@pytest.mark.parametrize(
    ("template", "messages"),
    [
        pytest.param(LLAVA, PARTS, id="llava"),
        pytest.param(MISTRAL, PARTS, id="mistral"),
        pytest.param(LLAMA_3, TEXTS, id="llama-3"),
        pytest.param(CHATML, TEXTS, id="chatml"),
        pytest.param(KITCHEN, TEXTS, id="kitchen-texts"),
        pytest.param(KITCHEN, PARTS, id="kitchen-parts"),
    ],
)
def test_renders_as_in_transformers(template, messages, go, oracle):
    ours = render_chat(messages, template, special_tokens=SPECIAL, add_generation_prompt=go)
    assert ours == oracle(messages, template, go)
    assert "{{ this }}" in ours or "A cat." in ours  # a message is text, never template


def test_date(oracle):
    template = "{{ strftime_now('%Y') }}{{ messages[0].content }}"
    assert render_chat(TEXTS, template) == oracle(TEXTS, template, True)


def test_texts_for_a_template_that_reads_parts(oracle):
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TEXTS]
    assert render_chat(TEXTS, LLAVA) == oracle(as_parts, LLAVA, True)
    assert "Sure?" not in oracle(TEXTS, LLAVA, True)  # transformers loses the text here


def test_parts_for_a_template_that_reads_texts(oracle):
    flat = [
        {"role": "user", "content": "<image>\nWhat is this?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "<image>\nAnd this?"},
    ]
    for template in (LLAMA_3, CHATML):
        assert render_chat(PARTS, template, special_tokens=SPECIAL) == oracle(flat, template, True)
    assert "<img>\nAnd this?" in render_chat(PARTS, CHATML, image_token="<img>")


def test_templates_see_neither_pictures_nor_methods_of_rich_objects():
    picture = Image.fromarray(np.zeros((2, 2, 3), np.uint8))

    class Shade(enum.StrEnum):
        RED = "red"

    messages = [
        {"role": "user", "name": Shade.RED, "size": picture, "content": [{"type": "image", "image": picture}]},
    ]
    template = "{{ messages[0].name }} {{ messages[0].name.name }} {{ messages[0].size }} {{ messages[0].content }}"
    assert render_chat(messages, template) == "red  <Image> [{'type': 'image', 'image': '<image>'}]"
    template = "{{ messages[0].content[0].image.save('/tmp/x') }}"
    with pytest.raises(CheckpointError):
        render_chat(messages, template)


def test_a_long_data_uri_costs_nothing():
    uri = "data:image/png;base64," + "A" * 10_000_000
    messages = [{"role": "user", "content": [{"type": "image", "url": uri}, {"type": "text", "text": "hi"}]}]
    assert render_chat(messages, "{% set copy = messages[:] %}" + LLAVA).endswith("<image>\nhi ASSISTANT:")


def test_a_refusal_is_the_users_error():
    with pytest.raises(PromptError, match=r"refuses these messages: No hello"):
        render_chat(TEXTS, "{{ raise_exception('No ' ~ 'hello') }}")


def test_a_syntax_error_names_the_line():
    with pytest.raises(CheckpointError, match=r"line 3.*syntax error.*endfor"):
        render_chat(TEXTS, "a\nb\n{% for x in messages %}")


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ nothing.at.all }}", "{% include 'x' %}", "{{ 1 + 'a' }}"])
def test_a_template_that_fails(template):
    with pytest.raises(CheckpointError, match="cannot render these messages"):
        render_chat(TEXTS, template)


def test_render_prefers_the_checkpoints_template(folders, tokenizers_by_name):
    with_template, without = tokenizers_by_name["qwen2"], tokenizers_by_name["hired"]
    assert render(TEXTS[1:], with_template, STYLES["vicuna_v1"]).startswith("<|im_start|>system\nYou are")
    assert render(PARTS, without, STYLES["vicuna_v1"]).endswith("USER: <image>\nAnd this? ASSISTANT:")
    assert render(PARTS[:2], without, STYLES["vicuna_v1"], add_generation_prompt=False).endswith("A cat.</s>")


def vila_cases(golden):
    return json.loads((golden / "text" / "vila.json").read_text())["cases"]


def test_token_ids_of_whole_conversations_are_those_of_vila(golden, folders):
    added = ("<vila/sentinel>", "<image>", "<vila/video>")
    tokenizers = {name: Tokenizer.from_folder(folders / name, added_tokens=added) for name in ("llama", "qwen2")}
    cases = vila_cases(golden)
    for case in cases:
        tokenizer = tokenizers[case["tokenizer"]]
        messages = [
            {"role": "user" if index % 2 == 0 else "assistant", "content": text}
            for index, text in enumerate(case["turns"])
        ]
        if case["no_system_prompt"]:
            messages.insert(0, {"role": "system", "content": ""})
        go = len(case["turns"]) % 2 == 1
        if case["style"] is None:
            text = render(messages, tokenizer, STYLES["plain"], add_generation_prompt=go)
        else:
            text = render_style(messages, STYLES[case["style"]], add_generation_prompt=go)
        assert tokenizer.encode_prompt(text) == case["ids"], case
    assert {case["tokenizer"] for case in cases} == {"llama", "qwen2"} and len(cases) == 21
