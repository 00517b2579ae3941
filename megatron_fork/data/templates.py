r"""Prompt templates: from a question to the text that a model continues.

The paper's template is that of arXiv 2506.01939; the Qwen3 ones give what Qwen3's own chat template gives for one message of
the user, with and without thinking. Anything else is a Jinja template with `question` and the row's columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from transformers import PreTrainedTokenizerBase

from megatron_fork.data.answers import short
from megatron_fork.errors import DataError

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
QWEN3 = "<|im_start|>user\n{{ question }}<|im_end|>\n<|im_start|>assistant\n"
NAMED = {
    "none": "{{ question }}",
    "paper": "User:\n{{ question }}\n" + BOXED + "\n\nAssistant:\n",
    "qwen3": QWEN3,
    "qwen3_no_thinking": QWEN3 + "<think>\n\n</think>\n\n",
}
# Templates of the tokenizer's own, by whether they ask it to think.
OF_TOKENIZER = {"chat": True, "chat_no_thinking": False}
MARKS_OF_CHAT = ("<|im_start|>", "<|im_end|>")

Template = Callable[[str, dict[str, Any], str], str]
"""(question, row, place) to text; raises `DataError` that names the place."""


def find_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template called `name`, or that `name` is; raises `DataError` where it is none or does not fit the tokenizer."""
    if name in OF_TOKENIZER:
        return _of_tokenizer(name, tokenizer)
    if name.startswith("qwen3") and name in NAMED:
        missing = [mark for mark in MARKS_OF_CHAT if mark not in tokenizer.get_vocab()]
        if missing:
            raise DataError(
                f"data.template={name} needs the tokens {' '.join(missing)}, which the tokenizer does not have",
                hint="use the model's own chat template (chat), or paper for a base model",
            )
    return _jinja(NAMED.get(name) or _source(name), name)


def _source(name: str) -> str:
    path = Path(name)
    if path.suffix in (".jinja", ".j2") and path.is_file():
        return path.read_text(encoding="utf-8")
    if "{{" in name or "{%" in name:
        return name
    known = ", ".join([*NAMED, *OF_TOKENIZER])
    raise DataError(
        f"data.template={name} is not a template",
        hint=f"known: {known}; or Jinja with {{{{ question }}}}, or a .jinja file",
    )


def _jinja(source: str, name: str) -> Template:
    # Sandboxed: a recipe may come from somebody else.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_as_text
    )
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"data.template is not valid Jinja, line {error.lineno}: {error.message}", hint="see docs/data.md"
        ) from error

    def fill(question: str, row: dict[str, Any], place: str) -> str:
        try:
            return template.render({**row, "question": question})
        except (jinja2.TemplateError, TypeError) as error:
            raise DataError(
                f"{place} does not fit data.template={name[:60]!r}: {error}", hint="see docs/data.md"
            ) from error

    return fill


def _as_text(value: Any) -> Any:
    """What a template writes; a list or nothing would come out as Python prints it."""
    if (
        value is None
        or isinstance(value, list | tuple | dict | set)
        or (isinstance(value, float) and math.isnan(value))
    ):
        raise TypeError(f"{short(value)} is not text; take what is in it, or use join or default")
    return value


def _of_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    if not tokenizer.chat_template:
        raise DataError(
            f"data.template={name}, but the tokenizer has no chat template",
            hint="use paper or qwen3, or add chat_template.jinja to the model folder",
        )

    def fill(question: str, row: dict[str, Any], place: str) -> str:
        message = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=OF_TOKENIZER[name]
        )

    return fill


def brings_special_tokens(name: str) -> bool:
    """Whether the text has its special tokens in it, so that the tokenizer must not add its own."""
    return name in OF_TOKENIZER or name.startswith("qwen3")
