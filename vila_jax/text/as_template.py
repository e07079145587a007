"""VILA's conversations as a Jinja chat template, for software that tokenises a whole prompt at once, pictures and all.

VILA's forms of prompts (`vila_jax.text.prompts`) do more than write a text, and a template can only write one. What
they do besides is therefore written as text, so that the ids become the same:

* Before NVILA the text behind a picture is tokenised as a text of its own. A Llama tokenizer begins every text with a
  word start, which it does not after a special token; a space in the text is the same piece.
* NVILA puts the ids of a newline behind every picture. Here the newline is written.

The ids are those of a tokenizer that adds its BOS where a prompt does not begin with one, as transformers' processors
do (its tokenizers alone do not, when they apply a template).
"""

from vila_jax.errors import CheckpointError
from vila_jax.text.prompts import LegacyForm, MediaForm, VilaForm
from vila_jax.text.styles import Style

_SIGNATURE = "{#- VILA's form of conversation, written by vila-jax -#}\n"
_OWN_BEGINS = "{#- what follows is the checkpoint's own template #}\n"  # no dash behind: its first spaces are its own
_TEXT = "{text}"


def chat_template(form: VilaForm, style: Style | None) -> str:
    """The source of the template.

    Args:
      form: how the model's prompts become ids.
      style: how its conversations are written; None for the chat template of its tokenizer, which is then wrapped.

    Raises:
      CheckpointError: the tokenizer cannot give a whole prompt the ids that the form gives it.
    """
    if isinstance(form, MediaForm):
        return _SIGNATURE + _messages(form.tokenizer.image_token, _after_image(form)) + _body(form, style)
    assert isinstance(form, LegacyForm) and style is not None, "before NVILA no template of a checkpoint was used"
    mark = style.image.replace("{image}", form.tokenizer.image_token)
    return _SIGNATURE + _messages(mark, None) + _body(form, style)


def without_ours(template: str) -> str | None:
    """A checkpoint's own template: what a template of ours was wrapped around, None if nothing, any other as it is."""
    if not template.startswith(_SIGNATURE):
        return template
    return template.partition(_OWN_BEGINS)[2] or None


def _messages(mark: str, after_image: str | None) -> str:
    """Sets `turns` to the messages with their contents as texts: parts as they come, `mark` for a picture.

    Args:
      after_image: NVILA's text behind every picture, of contents without spaces around them; None before NVILA.
    """
    content = "content"
    if after_image is not None:
        content += f" | trim | replace({_quoted(mark)}, {_quoted(mark + after_image)})"
    return _lines(
        "{%- set ns = namespace(turns=[]) -%}",
        "{%- for message in messages -%}",
        "  {%- set content -%}",
        "    {%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}",
        "      {%- for part in message['content'] -%}",
        "        {%- if part['type'] == 'text' -%}{{- part['text'] -}}",
        f"        {{%- elif part['type'] in ('image', 'image_url') -%}}{_print(mark)}",
        "        {%- else -%}{{- raise_exception('only text and images are understood') -}}{%- endif -%}",
        "      {%- endfor -%}",
        "    {%- endif -%}",
        "  {%- endset -%}",
        f"  {{%- set ns.turns = ns.turns + [dict(message, content={content})] -%}}",
        "{%- endfor -%}",
    )


def _body(form: VilaForm, style: Style | None) -> str:
    if style is None:
        assert form.tokenizer.chat_template is not None
        return "{%- set messages = ns.turns -%}\n" + _OWN_BEGINS + form.tokenizer.chat_template
    gap = _gap(form)
    written = _system(form, style) + _turns(style)
    if not gap:
        return written
    # As the form does it: where no text follows, neither does a word start.
    image = _quoted(form.tokenizer.image_token)
    behind = f"{{%- if piece -%}}{_print(gap)}{{%- endif -%}}"
    return _lines(
        "{%- set prompt -%}",
        written.rstrip("\n"),
        "{%- endset -%}",
        f"{{%- for piece in prompt.split({image}) -%}}",
        f"  {{%- if not loop.first -%}}{{{{- {image} -}}}}{behind}{{%- endif -%}}",
        "  {{- piece -}}",
        "{%- endfor -%}",
    )


def _system(form: VilaForm, style: Style) -> str:
    """Takes the system's turn off `ns.turns`, sets `ns.system` to what stands for it; writes it if it goes first."""
    before, after = style.system.split(_TEXT)
    user = style.user.split(_TEXT)[0]
    said = style.begin + (user if style.system_inside_user else before)
    unsaid = style.begin + ("" if style.system_inside_user else style.no_system) + user
    return _lines(
        f"{{%- set ns.system = {_quoted(style.default_system)} -%}}",
        "{%- if ns.turns and ns.turns[0]['role'] == 'system' -%}",
        "  {%- set ns.system = ns.turns[0]['content'] -%}",
        "  {%- set ns.turns = ns.turns[1:] -%}",
        "{%- endif -%}",
        "{%- if not ns.turns -%}{{- raise_exception('there is no user message') -}}{%- endif -%}",
        "{%- if ns.system -%}",
        _print(_lead(form, said) + style.begin),
        f"  {{%- set ns.system = {_quoted(before)} + ns.system + {_quoted(after)} -%}}",
        "{%- else -%}",
        _print(_lead(form, unsaid) + style.begin),
        f"  {{%- set ns.system = {_quoted(style.no_system)} -%}}",
        "{%- endif -%}",
        "" if style.system_inside_user else "{{- ns.system -}}",
    )


def _turns(style: Style) -> str:
    """Writes `ns.turns`."""
    between = f"{{%- if not loop.first -%}}{_print(style.between_rounds)}{{%- endif -%}}" * bool(style.between_rounds)
    system = "{%- if loop.first -%}{{- ns.system -}}{%- endif -%}" if style.system_inside_user else ""
    return _lines(
        "{%- for turn in ns.turns -%}",
        "  {%- if turn['role'] != ['user', 'assistant'][loop.index0 % 2] -%}",
        "    {{- raise_exception('the roles must be user, assistant, user, ...') -}}",
        "  {%- elif turn['role'] == 'user' -%}",
        f"    {between}{_turn(style, style.user, system)}",
        "  {%- else -%}",
        f"    {_turn(style, style.assistant)}",
        "  {%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        "  {%- if ns.turns[-1]['role'] != 'user' -%}",
        "    {{- raise_exception('the last message must be of the user') -}}",
        "  {%- endif -%}",
        _print(style.generation),
        "{%- endif -%}",
    )


def _turn(style: Style, turn: str, inside: str = "") -> str:
    """One turn; `inside` stands before what it says."""
    before, after = turn.split(_TEXT)
    end, last = style.conversation_end
    closing = _print(after)
    if last and after.endswith(end):
        closing = (
            f"{{%- if loop.last and not add_generation_prompt -%}}{_print(after.removesuffix(end) + last)}"
            f"{{%- else -%}}{closing}{{%- endif -%}}"
        )
    return f"{_print(before)}{inside}{{{{- turn['content'] -}}}}{closing}"


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines if line)


def _print(text: str) -> str:
    return f"{{{{- {_quoted(text)} -}}}}" if text else ""


def _quoted(text: str) -> str:
    """A literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _after_image(form: MediaForm) -> str:
    """The text whose ids are those that NVILA puts behind a picture."""
    tokenizer, image = form.tokenizer, form.tokenizer.image_token
    wanted = [i for token in form.encode(f"a{image}b", [1]) for i in _spelled_out(form, token)]
    return _found(form, ["\n", *(f"{tokenizer.bos_token}{space}\n" for space in ("", " "))], f"a{image}{{}}b", wanted)


def _spelled_out(form: MediaForm, token: int) -> list[int]:
    return [token, *form.after_image] if token == form.image_id else [token]


def _gap(form: VilaForm) -> str:
    """What has to stand behind a picture for the text after it to get the ids of a text of its own."""
    if isinstance(form, MediaForm):
        return ""
    tokenizer, image = form.tokenizer, form.tokenizer.image_token
    wanted = [tokenizer.image_token_id if i == form.image_id else i for i in form.encode(f"a{image}\nb", [1])]
    return _found(form, ["", " "], f"a{image}{{}}\nb", wanted)


def _lead(form: VilaForm, start: str) -> str:
    """What has to stand before a prompt of this start for it to get the ids that the form gives it."""
    return _found(form, ["", " "], f"{{}}{start}a", form.encode(f"{start}a", []))


def _found(form: VilaForm, candidates: list[str], prompt: str, ids: list[int]) -> str:
    """The candidate which in the place of `{}` makes a whole prompt have these ids."""
    before, after = prompt.split("{}")
    for candidate in candidates:
        if form.tokenizer.encode_prompt(before + candidate + after) == ids:
            return candidate
    raise CheckpointError(
        f"no text gives {before + after!r} the ids that this model was trained with, if it is tokenised as a whole",
        where="tokenizer",
        fix="Use the tokenizer that was published with these weights.",
    )
