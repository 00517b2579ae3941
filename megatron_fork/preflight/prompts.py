"""The first prompt as the engine gets it: rendered by the template, encoded, and decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_fork.data import PromptSource
from megatron_fork.preflight.findings import Finding
from megatron_fork.run import LoadedSet

_SHOWN = 60


def prompts(source: PromptSource, sets: Sequence[LoadedSet] = ()) -> Iterator[Finding]:
    """What the first prompt's text and tokens are. A tokenizer that does not give the text back is worth a look."""
    prompt, tokenizer = (source.training or source.held_out)[0], source.tokenizer
    yield Finding("data", str(source.counts), f"{len(source.held_out):,} held out")
    for each in sets:
        yield Finding(f"set {each.name}", str(each.source.counts), f"{each.chosen.samples} samples each")
    shown = prompt.text if len(prompt.text) <= _SHOWN else f"{prompt.text[:_SHOWN]}..."
    yield Finding("first prompt", ascii(shown) if not shown.isprintable() else shown, f"{len(prompt.tokens)} tokens")
    decoded = tokenizer.decode(prompt.tokens)
    if prompt.text in decoded:
        yield Finding("decoded again", "the same text")
        return
    same = "".join(prompt.text.split()) in "".join(decoded.split())
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prompt.tokens
    yield Finding(
        "decoded again",
        "the same text but for blanks" if same else f"another text: {decoded[:_SHOWN]!a}",
        f"it has the token {tokenizer.unk_token} for what the tokenizer does not know" if unknown else "",
        "ok" if same else "note",
    )
