"""An error is one printable line, whatever stands in the names and values that it quotes."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.errors import ConfigError, MegatronForkError


@given(st.text(), st.text())
def test_an_error_is_one_printable_line(message: str, hint: str) -> None:
    error = ConfigError(message, hint=hint)
    assert error.message.isprintable() and error.hint.isprintable()
    assert str(error) == error.message
    error.message.encode()  # no surrogate is left that a terminal could not be sent


def test_what_can_be_printed_stays() -> None:
    assert MegatronForkError("run.folder=/größe/日本 is a file").message == "run.folder=/größe/日本 is a file"
    assert MegatronForkError("a\r\nb\x1b[31m").message == "a\\r\\nb\\x1b[31m"
