"""What is said to be known of a script's words is what bash makes of them; the rest is marked.

The reference is bash itself, which is given the same script and prints the words that its command receives.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.planning.peers.shell_words import Word, commands

BASH = shutil.which("bash")
SCRIPTS = [
    "a=1\nshow x=$a y=${a} 'z=$a' \"w=$a b\"",
    "a=${MISSING:-$((2 * (3 + 4)))}\nshow n=$a m=$((a * 2)) k=$((7 / 2))",
    "A=(--x 1 # one\n  --y 'two words'\n)\nA+=(--z)\nshow ${A[@]}",
    'A=("a b" c)\nshow "${A[@]}"',
    'a=\'1 2\'\nshow $a "$a" x="$a"',
    "show a \\\n  b # c\n",
    "show 'it'\"'\"'s' \\$x \"\\$y\" ''",
    "cat > /dev/null <<EOF\nshow not=this\nEOF\nshow this",
    "a=x; b=${a}y\nshow $b$a ${b}${a}",
    "export A=1 B=2\nshow $A$B",
    "PRE=1 show after",
    "a=1\na+=2\nshow $a",
    "show a=#b a#b",
    "show [\"console\",'wandb']",
]


def bash_words(script: str) -> list[str]:
    """The words of the last `show`."""
    assert BASH
    program = "show() { printf '%s\\0' \"$@\"; }\n" + script
    done = subprocess.run(
        [BASH, "--norc", "-c", program], capture_output=True, text=True, timeout=20, env={"PATH": os.environ["PATH"]}
    )
    return done.stdout.split("\0")[:-1]


def own_words(script: str) -> list[Word]:
    (found,) = [words for words in commands(script) if words[0].text == "show"]
    return found[1:]


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_those_of_bash(script: str) -> None:
    found = own_words(script)
    assert [word.text for word in found] == bash_words(script) and all(word.known for word in found)


@pytest.mark.skipif(BASH is None, reason="needs bash")
@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abc"), st.sampled_from(["1", "'x y'", '"p q"', "$((1024*3))", "${Q:-r}", "d"]), max_size=3
    ),
    st.lists(
        st.lists(
            st.sampled_from(["$a", '"$b"', "${c}", "w", "'l m'", "${a:-n}", "$((2+3))", "=", '"e$a"', "\\ ", ".k"]),
            min_size=1,
            max_size=3,
        ).map("".join),
        min_size=1,
        max_size=4,
    ),
)
def test_generated_words_are_those_of_bash_or_marked(variables: dict[str, str], words: list[str]) -> None:
    script = "".join(f"{name}={value}\n" for name, value in variables.items()) + "show " + " ".join(words)
    found = own_words(script)
    if all(word.known for word in found):
        assert [word.text for word in found] == bash_words(script)
    else:
        assert any("$" in word.text for word in found if not word.known)


@pytest.mark.parametrize(
    "script",
    [
        "show x=$(date)",
        "show x=`date`",
        "show x=$UNSET",
        "show x=${UNSET%.*}",
        "if true; then a=1; else a=2; fi\nshow x=$a",
        "for a in 1 2; do b=$a; done\nshow x=$b",
        "a=$(date)\nb=$a/c\nshow x=$b",
        "show x=$((UNSET * 2))",
        "show x=$1",
    ],
)
def test_what_only_a_shell_knows_is_marked(script: str) -> None:
    assert [word.known for word in own_words(script)] == [False]


def test_deep_scripts_end() -> None:
    list(commands("show " + "${A:-" * 5000 + "}" * 5000))
    list(commands("show " + "$(" * 5000))
    list(commands("show $((" + "(" * 5000 + "))"))
    list(commands("a=$a$a\n" * 500))
