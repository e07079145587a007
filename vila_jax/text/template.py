"""From a conversation to the text of the prompt: the checkpoint's own chat template, else the model's style.

A template is a Jinja program that comes with the checkpoint; `vila_jax.text.sandbox` says what it may and may not do.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from vila_jax.errors import CheckpointError, PromptError
from vila_jax.text import messages as messages_lib
from vila_jax.text import sandbox
from vila_jax.text.styles import Style, render_style
from vila_jax.text.tokenizer import Tokenizer

_LIMITS = sandbox.TemplateLimits()
_PROBE = "kqzvxwj"  # a text that no template writes by itself
# The probe as a message says it, not as part of a printed list: [{'type': 'text', 'text': 'kqzvxwj'}].
_PRINTED = re.compile(rf"""(?<!['"]text['"]: ['"]){_PROBE}""", re.IGNORECASE)


def render(messages: Any, tokenizer: Tokenizer, style: Style, *, add_generation_prompt: bool = True) -> str:
    """Renders a conversation with the checkpoint's template when it has one, else in the style.

    Args:
      messages: the conversation, see `vila_jax.text.messages`.
      tokenizer: holds the template, the special tokens and the image placeholder.
      style: used when there is no template.
      add_generation_prompt: whether the text ends by inviting the model to answer.

    Returns:
      The prompt, with one placeholder per image; tokenise it with `Tokenizer.encode_prompt`.

    Raises:
      PromptError: the messages are malformed, or the template refuses them.
      CheckpointError: the template is broken, unsafe or exceeds a limit.
    """
    if tokenizer.chat_template is None:
        return render_style(
            messages, style, image_token=tokenizer.image_token, add_generation_prompt=add_generation_prompt
        )
    return render_chat(
        messages,
        tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens,
        image_token=tokenizer.image_token,
        add_generation_prompt=add_generation_prompt,
    )


def render_chat(
    messages: Any,
    template: str,
    *,
    special_tokens: Mapping[str, str] | None = None,
    image_token: str = "<image>",
    add_generation_prompt: bool = True,
    limits: sandbox.TemplateLimits = _LIMITS,
) -> str:
    """Renders a conversation with a Jinja chat template, as `apply_chat_template` of `transformers` does.

    Messages reach the template as they are, with one difference: templates read a message's content either as a text
    or as a list of parts, and given the other form they lose it or print it as a Python list. The content is brought
    into the form that the template reads; images then stand first, each as the placeholder and a newline.

    Args:
      messages: the conversation, see `vila_jax.text.messages`.
      template: source of the template.
      special_tokens: variables such as `bos_token`.
      image_token: placeholder of one image, for templates that read texts only.
      add_generation_prompt: variable of that name.
      limits: what the template may use.

    Raises:
      PromptError: the messages are malformed, or the template refuses them.
      CheckpointError: the template is broken, unsafe or exceeds a limit.
    """
    special = tuple(sorted((special_tokens or {}).items()))
    plain = [_template_message(message) for message in messages_lib.validate(messages)]
    with _reported():
        plain = _in_readable_form(plain, template, special, image_token, limits)
        return _run(template, plain, special, add_generation_prompt, limits)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turns whatever a template raises into an error that says what is wrong with it."""
    where, fix = "chat template", "Repair the checkpoint's template, or pass a raw prompt."
    try:
        yield
    except sandbox.TemplateRefusal as error:
        raise PromptError(f"the template refuses these messages: {error}", where=where) from error
    except sandbox.TemplateLimitError as error:
        raise CheckpointError(f"the template was stopped: {error}", where=where, fix=fix) from error
    except jinja2.TemplateSyntaxError as error:
        where = f"{where}, line {error.lineno}"
        raise CheckpointError(f"syntax error: {error.message}", where=where, fix=fix) from error
    except jinja2.exceptions.SecurityError as error:
        raise CheckpointError(f"the template is unsafe: {error}", where=where, fix=fix) from error
    except Exception as error:
        what = f"the template cannot render these messages ({type(error).__name__}: {str(error)[:200]})"
        raise CheckpointError(what, where=where, fix=fix) from error


def _run(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Sequence[tuple[str, str]],
    add_generation_prompt: bool,
    limits: sandbox.TemplateLimits,
) -> str:
    variables = {
        **dict(special_tokens),
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    return sandbox.render_template(template, variables, limits)


def _template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """What the template sees of a message: plain data, and of an image's source only that it is there."""
    plain = sandbox.plain_data({key: value for key, value in message.items() if key != "content"})
    content = message["content"]
    if not isinstance(content, str):
        keys = messages_lib.SOURCE_KEYS
        content = [{key: f"<{key}>" if key in keys else value for key, value in part.items()} for part in content]
    return {**plain, "content": sandbox.plain_data(content)}


def _in_readable_form(
    messages: list[dict[str, Any]],
    template: str,
    special_tokens: tuple[tuple[str, str], ...],
    image_token: str,
    limits: sandbox.TemplateLimits,
) -> list[dict[str, Any]]:
    """The messages with contents as texts where the template reads no parts, and as parts where it reads no texts."""
    is_text = {isinstance(message["content"], str) for message in messages}
    reads = {form: _reads(template, special_tokens, form, limits) for form in (True, False)}
    if all(reads[form] for form in is_text) or not any(reads.values()):
        return messages
    if reads[True]:
        return [{**m, "content": messages_lib.flat_text(m["content"], f"{image_token}\n")} for m in messages]
    return [{**m, "content": _as_parts(m["content"])} for m in messages]


def _as_parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@functools.lru_cache(maxsize=64)
def _reads(
    template: str, special_tokens: tuple[tuple[str, str], ...], as_text: bool, limits: sandbox.TemplateLimits
) -> bool:
    """Whether the template prints the words of a message whose content is a text, or a list of parts."""
    content = _PROBE if as_text else [{"type": "text", "text": _PROBE}]
    try:
        text = _run(template, [{"role": "user", "content": content}], special_tokens, True, limits)
    except sandbox.TemplateLimitError:
        raise
    except Exception:  # this conversation does not suit the template, or no conversation does: rendering will tell
        return False
    return _PRINTED.search(text) is not None
