"""The errors that a user can fix.

Each has one line that names the field and the value, and a hint that names the way out. The command line prints exactly
those two and exits with `exit_code`; any other exception that reaches it is a defect of the project. Only `StopRequested` is
not an error: it never reaches the command line.
"""

from __future__ import annotations


def _printable(text: str) -> str:
    """The text on one line: characters that a terminal cannot print, or would interpret, are escaped."""
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class MegatronForkError(Exception):
    """Base of every error that the user can fix."""

    exit_code = 1
    is_of_one_rank = False
    """Whether a rank may meet it alone: then it speaks for itself."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_printable(message))
        self.message = _printable(message)
        self.hint = _printable(hint)

    def speak_for(self, place: str) -> None:
        """A rank other than the first has met it alone: it is printed there, after the rank's name."""
        self.is_of_one_rank = True
        self.message = f"{place}: {self.message}"


class ConfigError(MegatronForkError):
    """A recipe or an override that cannot be used as written."""

    exit_code = 2


class NotInstalledError(ConfigError):
    """A package that a recipe needs and this Python lacks; that of a job's nodes may have it."""


class LayoutError(MegatronForkError):
    """Ranks, heads, layers or groups that do not divide as the layout requires."""

    exit_code = 2


class UnreachableError(LayoutError):
    """A rank that cannot reach another one."""

    is_of_one_rank = True


class PreflightError(MegatronForkError):
    """A part that would fail in a run, as trying it has shown."""


class ModelError(MegatronForkError):
    """A model folder or architecture that cannot be built."""


class DataError(MegatronForkError):
    """Prompts that are missing, empty or too long."""


class CheckpointError(MegatronForkError):
    """A checkpoint that is incomplete, belongs to another run, or is not what it claims to be."""


class RolloutError(MegatronForkError):
    """An engine that failed, or whose log-probs are not the policy's."""


class TraceError(MegatronForkError):
    """A trace file that is missing, damaged, or not what it claims to be; or one that cannot be written."""


class EvaluationError(MegatronForkError):
    """Responses from which a number cannot be estimated, or evaluations that are not of the same prompts."""


class StatisticsError(MegatronForkError):
    """Logits, targets or vocabulary shards that have no log-prob or entropy."""


class SelectionError(MegatronForkError):
    """Entropies or counts from which no set of tokens can be chosen."""


class ObjectiveError(MegatronForkError):
    """Rewards, advantages or log-probs from which no loss can be formed."""


class ExtensionError(MegatronForkError):
    """What code of the user's own, which a recipe names, has raised or given back."""

    is_of_one_rank = True


class GradientError(ObjectiveError):
    """Gradients of too many updates in a row that are no numbers; every rank raises it."""


class RunFolderError(MegatronForkError):
    """The run folder cannot be written."""


class StopRequested(Exception):
    """The run was asked to stop, at a place from which it can continue later; `checkpointing` catches it and saves.

    Stop points raise it. They are passed down as functions: long work calls one wherever it can stop.
    """


class Interrupted(MegatronForkError):
    """The run was asked to stop; its state is saved."""

    exit_code = 130


class RankLostError(MegatronForkError):
    """Another rank is lost, or has failed before this one."""

    def __init__(self, message: str, *, hint: str, exit_code: int, speaks: bool) -> None:
        """`exit_code`: that of the rank which failed, or what asks to start again; `speaks`: whether this rank prints it."""
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.is_of_one_rank = speaks


class Preempted(Interrupted):
    """The scheduler asked the run to stop; the exit code (EX_TEMPFAIL) asks to start it again."""

    exit_code = 75
