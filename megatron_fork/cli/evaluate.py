"""`megatron-fork evaluate` and `generate`: responses of a model to whole prompt sets, judged or not, without training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from datetime import datetime
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

from megatron_fork.cli.guard import Debug, guarded, stops_at_once, stops_no_more
from megatron_fork.errors import ConfigError, EvaluationError
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from megatron_fork.config import RunConfig
    from megatron_fork.evaluation import PromptSet

Place = Annotated[
    Path,
    typer.Argument(
        parser=path_at_home,
        metavar="RECIPE|RUN|MODEL",
        help="recipe, folder of a run, or Hugging Face folder",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="dotted overrides: rollout.engine=vllm data.template=chat", show_default=False),
]
Samples = Annotated[int | None, typer.Option(help="responses to each prompt", min=1, show_default=False)]
Longest = Annotated[
    int | None,
    typer.Option("--max-response-tokens", help="length at which responses are cut", min=1, show_default=False),
]
Temperature = Annotated[
    float | None, typer.Option(help="of the softmax; 0: the most likely tokens", min=0.0, show_default=False)
]
TopP = Annotated[
    float | None, typer.Option(help="sample from this much of the probability", min=0.0, max=1.0, show_default=False)
]
Seed = Annotated[
    int | None, typer.Option(help="of responses and intervals; by default the recipe's", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option(
        parser=path_at_home,
        metavar="FOLDER",
        help="an unfinished one is gone on with; by default one named for the model and the time",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="of a run, in place of its final model: step-N, model or warm_start", show_default=False),
]

Served = Annotated[
    str | None,
    typer.Option(
        "--engine-holds-model",
        metavar="NAME",
        help="servers keep the model that they have, under this name or folder; none is built here",
        show_default=False,
    ),
]

Entropy = Annotated[
    bool, typer.Option("--entropy", help="also the entropy of every token, by one statistics pass of the policy")
]


_KIND = Parameter.POSITIONAL_OR_KEYWORD


@dataclass(frozen=True)
class Drawn:
    """What the command line says about how responses are drawn; None: as the recipe has it."""

    place: Place
    overrides: Overrides = None
    sets: Sequence[str] = ()
    samples: Samples = None
    longest: Longest = None
    temperature: Temperature = None
    top_p: TopP = None
    seed: Seed = None
    out: Out = None
    checkpoint: Checkpoint = None
    served: Served = None
    entropy: Entropy = False
    name: str = "evaluate"
    pass_at: Sequence[int] = ()

    @property
    def option(self) -> str:
        """That names prompt sets."""
        return "--set" if self.name == "evaluate" else "--prompts"

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def settings(self) -> tuple[RunConfig, list[PromptSet]]:
        """The settings of the run, and the prompt sets that are asked for; raises `ConfigError`."""
        from megatron_fork.run import config_of

        names, words = words_of_sets(self.sets, self.overrides or (), option=self.option)
        chosen = {"rollout.max_response_tokens": self.longest, "rollout.top_p": self.top_p, "seed": self.seed}
        # No weights are trained with the log-probs: they may be of another softmax than training's.
        words = ["rollout.mismatch_limit=.inf", *words, *(self.overrides or ())]
        words += [f"{name}={value}" for name, value in chosen.items() if value is not None]
        words += [f"rollout.temperature={self.temperature}"] if self.temperature else []
        config = config_of(self.place, words, checkpoint=self.checkpoint)
        config = replace(config, rollout=replace(config.rollout, max_staleness=0))
        return config, self._sets(config, names)

    def _sets(self, config: RunConfig, names: Sequence[str]) -> list[PromptSet]:
        from megatron_fork.evaluation import held_out_set, prompt_sets

        found = prompt_sets(config.evaluation, config.data, config.rewards)
        by_name = {each.name: each for each in found}
        if unknown := [name for name in names if name not in by_name]:
            raise ConfigError(
                f"{self.option}={unknown[0]} names no set of {self.place}, and no file",
                hint=f"its sets: {', '.join(by_name)}"
                if by_name
                else "write NAME=FILE, such as aime_2024=aime24.jsonl",
            )
        if names:
            found = [by_name[name] for name in names]
        elif (config.data.held_out and not _is_bare_model(self.place)) or any(
            word.startswith("data.source=") for word in self.overrides or ()
        ):
            found.append(held_out_set(config.evaluation, config.data))
        if not found:
            raise ConfigError(f"{self.name} {self.place} without prompts", hint=f"name a set: {self.option} NAME=FILE")
        samples = 1 if self.greedy and self.samples is None else self.samples
        if self.greedy and samples != 1:
            raise EvaluationError(
                f"--temperature=0 with --samples={samples}: all responses to a prompt would be the same",
                hint="leave --samples out, or give a temperature",
            )
        return [each if samples is None else replace(each, samples=samples) for each in found]

    def folder(self, config: RunConfig) -> Path:
        """`--out`, or a new folder."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", config.run.name)
        folder = f"{self.name}-{name}-{datetime.now():%Y%m%d-%H%M%S}"
        return self.out or Path("evaluations") / folder


def with_options(command: Any) -> Callable[..., None]:
    """The command as Typer reads it: the options of `Drawn`, and its own, which all have a default."""
    options = get_type_hints(Drawn, include_extras=True)
    shared = [
        Parameter(each.name, _KIND, default=Parameter.empty if each.default is MISSING else each.default)
        for each in fields(Drawn)
        if get_origin(options[each.name]) is Annotated
    ]
    typed = get_type_hints(command, include_extras=True)
    names = [name for name in typed if name not in ("drawn", "return")]
    own = [Parameter(name, _KIND, default=default) for name, default in zip(names, command.__defaults__, strict=True)]
    typed = options | typed

    def called(**given: Any) -> None:
        command(Drawn(**{each.name: given.pop(each.name) for each in shared}), **given)

    in_help = (*shared[:2], *own[:-1], *shared[2:], own[-1])  # what is evaluated, the sets, how, and --debug
    every = [each.replace(annotation=typed[each.name]) for each in in_help]
    called.__signature__ = Signature(every)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in every}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


@with_options
def evaluate(
    drawn: Drawn,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=FILE",
            help="prompt set; a preset's name reads a file as the preset says; NAME alone: of the recipe. May be repeated",
            show_default=False,
        ),
    ] = None,
    pass_at: Annotated[
        str | None, typer.Option("--pass-at", help="k of pass@k and maj@k, such as 1,8,32", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw and judge responses to whole prompt sets: avg@k, pass@k and maj@k with intervals. Also under torchrun."""

    def work() -> None:
        draw_and_count(replace(drawn, sets=sets or (), pass_at=counts_in(pass_at)), judged=True)

    guarded(work, debug=debug)


@with_options
def generate(
    drawn: Drawn,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="file of prompts; answers are not needed. May be repeated"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw responses to the prompts of files and keep them as traces, without a verifier. Also under torchrun."""

    def work() -> None:
        if not prompts:
            raise ConfigError(f"generate {drawn.place} without prompts", hint="give --prompts FILE")
        draw_and_count(replace(drawn, sets=prompts, name="generate"), judged=False)

    guarded(work, debug=debug)


def draw_and_count(drawn: Drawn, *, judged: bool) -> None:
    """Do what the command line asks for; raises a `MegatronForkError`."""
    stops_at_once()
    config, sets = drawn.settings()
    from megatron_fork.run import Display, quiet_libraries

    quiet_libraries()
    from megatron_fork import distributed
    from megatron_fork.run import Asked, evaluate_model

    display = Display(speaks=distributed.rank() == 0)
    asked = Asked(
        sets,
        drawn.folder(config),
        judged=judged,
        pass_at=drawn.pass_at,
        served=drawn.served,
        entropy=drawn.entropy,
        greedy=drawn.greedy,
    )
    evaluate_model(config, asked, display)
    stops_no_more()
    distributed.finalize()


def words_of_sets(
    sets: Sequence[str], overrides: Sequence[str], *, option: str = "--set"
) -> tuple[list[str], list[str]]:
    """(names, overrides that describe the sets): settings of `data` on the command line hold for its sets too."""
    from megatron_fork.data import PRESETS

    names: list[str] = []
    words: list[str] = []
    shared = [word for word in overrides if word.startswith("data.")]
    shared = [
        word for word in shared if not word.startswith(("data.source=", "data.preset=", "data.held_out=", "data.seed="))
    ]
    for given in sets:
        name, equals, file = given.partition("=")
        if not equals and re.fullmatch(r"[A-Za-z0-9_-]+", given) and not Path(given).exists():
            names.append(given)
            continue
        if not equals:
            name, file = re.sub(r"[^A-Za-z0-9_-]", "_", Path(given).stem), given
        if not file or not name:
            raise ConfigError(f"{option}={given} names no file", hint="write NAME=FILE, such as aime_2024=aime24.jsonl")
        if name in names:
            raise ConfigError(f"{option}={given}: {name} is named twice", hint="give each set a name of its own")
        if re.fullmatch(r"[A-Za-z0-9_-]+", name) is None:
            raise ConfigError(f"{option}={given}: {name!a} is no name", hint="letters, digits, `_` and `-`")
        names.append(name)
        place = f"evaluation.sets.{name}"
        if other := [word for word in overrides if word.startswith(f"{place}.source=")]:
            raise ConfigError(f"{option}={given} and {other[0]} name two files", hint="leave one of them out")
        words.append(f"{place}.source={json.dumps(file)}")
        words += [f"{place}.preset={name}"] if name in PRESETS else []
        words += [f"{place}.{_as_yaml(word.removeprefix('data.'))}" for word in shared]
    return names, words


def _as_yaml(word: str) -> str:
    """An override of `data` for a set, whose fields are read as YAML: text is quoted."""
    from megatron_fork.data import DataConfig
    from megatron_fork.recipe import FieldReader

    name, _, text = word.partition("=")
    meant = FieldReader(DataConfig).override(name, text)
    return f"{name}={json.dumps(meant) if isinstance(meant, str) else text}"


def _is_bare_model(place: Path) -> bool:
    return (place / "config.json").is_file() and not (place / "resolved.yaml").is_file()


def counts_in(text: str | None) -> list[int]:
    """The whole numbers of a list such as `1,8,32`, none if there is no text; raises `ConfigError`."""
    if text is None:
        return []
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise ConfigError(f"--pass-at={text} is not a list of counts", hint="write --pass-at=1,8,32")
    return sorted({int(word) for word in words})
