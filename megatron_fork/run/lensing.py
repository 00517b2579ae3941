"""Scores traces with the lenses under a model: its weights in a model of transformers, and its engine for resampling."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_fork import distributed, rollout
from megatron_fork.analysis import (
    SMOOTHING,
    AnswerForm,
    Lens,
    Lenses,
    LensResponse,
    LensScorer,
    ModelReader,
    MutualInformation,
    Objective,
    Resampler,
    TokenBudget,
    read_responses,
)
from megatron_fork.config import RunConfig
from megatron_fork.errors import ConfigError
from megatron_fork.experience import Prompt
from megatron_fork.policy import Policy
from megatron_fork.rewards import RewardPool, answer_in, states_answers
from megatron_fork.rollout import EmbeddedEngine, PolicyWeights, text_of
from megatron_fork.run.console import Display
from megatron_fork.run.offline import ModelContext, build_engine, load_policy, model_context
from megatron_fork.run.provenance import provenance
from megatron_fork.run.scoring import PolicyScorer, check_readable, check_vocabulary
from megatron_fork.traces import TokenTexts, TraceFiles

LENSES = ("entropy", "mi", "variance", "anchors", "pruning")
"""In the order in which they take from the token budget: what costs most is last."""


@dataclass(frozen=True)
class AskedLenses:
    """Which lenses look at the traces, and how."""

    names: Sequence[str]
    form: AnswerForm = field(default_factory=AnswerForm)
    mi: MutualInformation = "authors_code"
    objective: Objective = "answer"
    a_round: int = 1
    """Tokens that greedy pruning takes away at once."""
    anchor_responses: int = 8
    anchor_samples: int = 16
    share: float = 0.2
    limit: int | None = None
    """Only the responses to so many prompts."""
    token_budget: int | None = None


def look(files: TraceFiles, config: RunConfig, asked: AskedLenses, display: Display, *, folder: Path) -> Lenses:
    """Score the traces under the model of `config`, on one rank.

    `folder`: where weights on disk go for servers to read, which only the anchors draw from. Raises a `MegatronForkError` for
    several ranks, another tokenizer, or traces that the lenses cannot use.
    """
    if distributed.world_size() > 1:
        raise ConfigError(
            f"analyze lenses reads with one rank, this is one of {distributed.world_size()}",
            hint="start it without torchrun",
        )
    with model_context(config, display) as context:
        texts = TokenTexts(context.tokenizer)
        responses = read_responses(
            files,
            asked.form,
            lambda tokens, after: texts.of(tokens, after=after),
            stop_tokens=context.stop_tokens,
            limit=asked.limit,
        )
        policy = load_policy(context)
        model = PolicyScorer(context, policy)
        check_vocabulary(files, model)
        for number, each in enumerate(responses):
            check_readable(each.prompt, each.tokens, model, f"response {number}, to {each.prompt_id},")
        budget = TokenBudget(asked.token_budget)
        scorer = LensScorer(
            _reader(context, policy, files.temperature),
            partial(_encoded, context.tokenizer),
            partial(texts.of, after=None),
            asked.form,
            budget,
            display.say,
        )
        lenses: list[Lens] = []
        sentences: list[list[tuple[str, float]]] = [[] for _ in responses]
        for name in (name for name in LENSES if name in asked.names):
            if name == "anchors":
                with _resampler(context, policy, responses, asked, budget, folder) as resampler:
                    lens, sentences = resampler.anchors(responses, most=asked.anchor_responses)
            else:
                lens = _scored(name, scorer, responses, asked)
            if lens.left_out:
                display.say(f"{name}: {lens.left_out:,} left out, which the token budget does not hold")
            lenses.append(lens)
    about = {
        "model": config.model.path or config.run.name,
        "answer": vars(asked.form),
        "mi": asked.mi,
        "pruning": {"objective": asked.objective, "tokens_a_round": asked.a_round},
        "anchors": {"samples": asked.anchor_samples, "smoothing": SMOOTHING},
        "token_budget": asked.token_budget,
        "tokens_spent": budget.spent,
        "provenance": provenance(str(context.layout)),
    }
    return Lenses(responses, lenses, scorer.references, sentences, asked.share, config.seed, about)


def _scored(name: str, scorer: LensScorer, responses: Sequence[LensResponse], asked: AskedLenses) -> Lens:
    if name == "entropy":
        return scorer.entropy(responses)
    if name == "mi":
        return scorer.mutual_information(responses, asked.mi)
    if name == "variance":
        return scorer.variance(responses)
    return scorer.pruning(responses, objective=asked.objective, a_round=asked.a_round)


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _reader(context: ModelContext, policy: Policy, temperature: float) -> ModelReader:
    """The policy's weights in a model of transformers, whose hidden states can be looked at."""
    config = context.config
    holder = EmbeddedEngine(
        context.hf_config,
        stop_tokens=context.stop_tokens,
        pad_token=0,
        batch_size=config.rollout.batch_size,
        device=distributed.device(),
        dtype=config.policy.dtype,
    )
    holder.update_weights(PolicyWeights(policy), 0)
    return ModelReader(holder.model, tokens_a_batch=config.policy.tokens_per_statistics_batch, temperature=temperature)


@contextmanager
def _resampler(
    context: ModelContext,
    policy: Policy,
    responses: Sequence[LensResponse],
    asked: AskedLenses,
    budget: TokenBudget,
    folder: Path,
) -> Iterator[Resampler]:
    """With the engine of `rollout.engine`, which has the policy's weights."""
    config = context.config
    longest = max(len(each.prompt) + len(each.tokens) for each in responses)
    with ExitStack() as stack:
        engine = build_engine(context, folder=folder, longest_prompt=longest)
        stack.callback(engine.close)
        engine.update_weights(PolicyWeights(policy), 0)
        some = [Prompt(place, "", tuple(each.prompt), "") for place, each in enumerate(responses[:4])]
        rollout.probe(engine, policy, some, config.rollout)
        rewards = stack.enter_context(RewardPool(config.rewards))

        def outcomes(finished: Sequence[tuple[Sequence[int], str]]) -> list[Hashable]:
            """What a response states where the verifier compares answers, else its reward."""
            whole = [(text_of(context.tokenizer, tokens), answer) for tokens, answer in finished]
            if states_answers(config.rewards.verifier):
                return [answer_in(text, config.rewards.verifier) for text, _ in whole]
            return [score.value for score in rewards.score_many(whole)]

        yield Resampler(
            lambda requests: list(engine.generate(requests)),
            outcomes,
            budget,
            context.display.say,
            asked.anchor_samples,
            config.rollout.max_response_tokens,
            config.rollout.temperature,
            config.seed,
        )
