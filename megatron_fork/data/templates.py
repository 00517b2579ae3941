r"""Prompt templates turn a question into the text that a model continues.

The paper's template is that of arXiv 2506.01939; the Qwen3 ones give the same text as Qwen3's own chat template for one message
of the user, with and without thinking. Anything else is a Jinja template with `question`, `messages`, the row's columns, and
the tokenizer's special tokens, such as `bos_token`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
from transformers import PreTrainedTokenizerBase

from megatron_fork.data.answers import short
from megatron_fork.data.conversations import Conversation, messages_of
from megatron_fork.errors import ConfigError, DataError
from megatron_fork.files import UTF8, at_home

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
NAMED = {
    "none": "{{ question }}",
    "paper": "User:\n{{ question }}\n" + BOXED + "\n\nAssistant:\n",
    "qwen3": QWEN3,
    "qwen3_no_thinking": QWEN3 + "<think>\n\n</think>\n\n",
}
# The tokenizer's own templates: whether they enable thinking.
OF_TOKENIZER = {"chat": True, "chat_no_thinking": False}
_KNOWN = "a template can use `question`, `messages`, the row's columns, and special tokens such as `bos_token`"
MARKS_OF_CHAT = ("<|im_start|>", "<|im_end|>")

Template = Callable[[str, dict[str, Any], str], str]
"""From (question, row, place) to text; raises `DataError` that names the place."""


def find_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template called `name`, or `name` itself; raises `DataError` if it is not one or does not fit the tokenizer."""
    if name in OF_TOKENIZER:
        return _of_tokenizer(name, tokenizer)
    if name.startswith("qwen3") and name in NAMED:
        missing = [mark for mark in MARKS_OF_CHAT if mark not in tokenizer.get_vocab()]
        if missing:
            raise DataError(
                f"data.template={name} needs the tokens {' '.join(missing)}, which the tokenizer does not have",
                hint="use the model's own chat template (chat), or paper for a base model",
            )
    return _jinja(NAMED.get(name) or _source(name), name, special_tokens(tokenizer))


def _source(name: str) -> str:
    if name.endswith((".jinja", ".j2")) and (path := Path(at_home(name))).is_file():
        try:
            return path.read_text(encoding=UTF8)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.template={path} cannot be read: {error}", hint="is it UTF-8?") from error
    if "{{" in name or "{%" in name:
        return name
    known = ", ".join([*NAMED, *OF_TOKENIZER])
    raise ConfigError(
        f"data.template={name} is not a template",
        hint=f"known: {known}; or Jinja with {{{{ question }}}}, or a .jinja file",
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's `bos_token`, `eos_token` and others, named as in chat templates."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def _jinja(source: str, name: str, tokens: dict[str, str]) -> Template:
    # Sandboxed: a recipe may come from somebody else.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_as_text
    )
    try:
        template = environment.from_string(source)
        writes_messages = "messages" in jinja2.meta.find_undeclared_variables(environment.parse(source))
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"data.template is not valid Jinja, line {error.lineno}: {error.message}", hint=_KNOWN
        ) from error

    def fill(question: str, row: dict[str, Any], place: str) -> str:
        if isinstance(question, Conversation) and not writes_messages:
            raise DataError(
                f"{place} has a prompt of {len(question.messages)} messages, but data.template={name[:60]!r} would only "
                "write the user's",
                hint="set data.template=chat, or write a template with `messages`",
            )
        try:
            return template.render({**tokens, **row, "question": str(question), "messages": messages_of(question)})
        except Exception as error:  # expressions in a template may raise anything
            raise DataError(
                f"{place} does not fit data.template={name[:60]!r}: {_reason(error)}", hint=_KNOWN
            ) from error

    return fill


def _as_text(value: Any) -> Any:
    """A value as a template writes it; raises TypeError for a list or None, which Jinja would print as Python does."""
    if (
        value is None
        or isinstance(value, list | tuple | dict | set)
        or (isinstance(value, float) and math.isnan(value))
    ):
        raise TypeError(f"{short(value)} is not text; write an item of it, or use join or default")
    return value


def _of_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    if not tokenizer.chat_template:
        raise DataError(
            f"data.template={name}, but the tokenizer has no chat template",
            hint="use paper or qwen3, or add chat_template.jinja to the model folder",
        )

    def fill(question: str, row: dict[str, Any], place: str) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages_of(question), tokenize=False, add_generation_prompt=True, enable_thinking=OF_TOKENIZER[name]
            )
        except Exception as error:  # a model folder's template may raise anything
            raise DataError(
                f"{place} cannot be written by the tokenizer's chat template: {_reason(error)}",
                hint="correct chat_template.jinja in the model folder, or set data.template to your own template",
            ) from error
        return str(text)

    return fill


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{line}{words}" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {words}"


def brings_special_tokens(name: str) -> bool:
    """Whether the template writes special tokens, so that the tokenizer must not add its own."""
    return name in OF_TOKENIZER or name.startswith("qwen3")
