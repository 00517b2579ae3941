"""Tasks made here: reproducible by seed, and their verifiers give the right answer 1 and everything else 0."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest
from support.prompt_files import bytes_tokenizer

from megatron_fork.data import DataConfig, arithmetic, load_prompts
from megatron_fork.data.config import GeneratorConfig
from megatron_fork.errors import ConfigError
from megatron_fork.rewards import RewardError, RewardPool, RewardsConfig, generate_tasks, score
from megatron_fork.rewards.procedural import EVALUATED, is_formula, is_literal, is_number_formula

FAST = [
    "chain_sum",
    "countdown",
    "gsm_symbolic",
    "spiral_matrix",
    "simple_integration",
    "isomorphic_strings",
    "n_queens",
]


def test_chains_and_their_verifier() -> None:
    source = load_prompts(DataConfig(source="arithmetic", generator=GeneratorConfig(size=300), held_out=50), None)
    prompts = [*source.training, *source.held_out]
    assert len({prompt.text for prompt in prompts}) == 300
    for prompt in prompts:
        value = eval(prompt.answer)  # + and - of our own making, which Python works off from the left too
        assert prompt.text == f"{prompt.answer} ="
        assert source.tokenizer.decode(prompt.tokens) == prompt.text
        assert score(f"... Answer: {value}", prompt.answer, kind="arithmetic").value == 1.0
        assert score(rf"\boxed{{{value:,}}}", prompt.answer, kind="arithmetic").value == 1.0
        for wrong in (f"Answer: {value + 1}", str(value), f"Answer: {prompt.answer}", f"Answer: {value} = {value}", ""):
            assert score(wrong, prompt.answer, kind="arithmetic").value == 0.0


def test_the_demonstrator_is_right_about_two_times_of_three() -> None:
    source = load_prompts(DataConfig(source="arithmetic", generator=GeneratorConfig(size=500), held_out=50), None)
    demonstrations = source.demonstrations(1500, step=1, seed=0)
    right = 0.0
    for each in demonstrations:
        assert each.response[-1] == source.tokenizer.eos_token_id
        text = source.tokenizer.decode(each.response[:-1])
        assert "<" not in text  # every word is in the vocabulary
        right += score(text, each.prompt.answer, kind="arithmetic").value
    assert 0.58 < right / 1500 < 0.76
    assert source.demonstrations(1500, step=1, seed=0) == demonstrations


@pytest.mark.parametrize("parameters", [{"terms": 1}, {"largest": 1000}, {"depth": 3}])
def test_chain_parameters_are_checked(parameters: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"data\.generator\.parameters"):
        list(arithmetic.chains(10, 0, parameters))


def test_too_many_chains() -> None:
    with pytest.raises(ConfigError, match=r"data\.generator\.size=100"):
        list(arithmetic.chains(100, 0, {"terms": 2, "largest": 2}))


@pytest.mark.parametrize("answer", ["", "1 +", "1 / 2", "__import__('os')", "1 + 2\n", "x"])
def test_a_reference_that_is_no_chain(answer: str) -> None:
    assert score("Answer: 3", answer, kind="arithmetic").value == 0.0


def test_tasks_of_reasoning_gym_are_scored_by_their_own_scorer() -> None:
    """In workers, where tasks that depend on the order of hashes come out as they were asked."""
    made = {task: list(generate_tasks(task, size=3, seed=5, parameters={})) for task in FAST}
    again = random.choice(FAST)
    assert made[again] == list(generate_tasks(again, size=3, seed=5, parameters={})), again
    answers = [answer for task in FAST for _, answer in made[task]]
    jobs = []
    for answer, right in zip(answers, oracle(answers), strict=True):
        jobs += [
            (f"<answer>9</answer> no <answer>{right}</answer>", answer),
            ("<answer>nonsense</answer>", answer),
            (right, answer),
        ]
    with RewardPool(RewardsConfig(kind="reasoning_gym", memory_gib=4.0, timeout_seconds=30.0)) as pool:
        values = [result.value for result in pool.score_many(jobs)]
    wrong = [job for job, value, due in zip(jobs, values, [1.0, 0.0, 0.0] * len(answers), strict=True) if value != due]
    assert not wrong


def oracle(answers: list[str]) -> list[str]:
    """The generators' own answers, from a process where hashes are ordered as in a worker."""
    import subprocess
    import sys

    from megatron_fork.rewards.process import worker_environment

    code = (
        "import json, sys, reasoning_gym\n"
        "found = []\n"
        "for answer in json.load(sys.stdin):\n"
        "    recipe = json.loads(answer)\n"
        "    task, seed, size, parameters = (recipe[name] for name in ('task', 'seed', 'size', 'parameters'))\n"
        "    made = reasoning_gym.create_dataset(task, seed=seed, size=size, **parameters)\n"
        "    found.append(made[recipe['index']]['answer'])\n"
        "print(json.dumps(found))\n"
    )
    words = {
        "input": json.dumps(answers),
        "env": worker_environment(),
        "capture_output": True,
        "text": True,
        "check": True,
    }
    return json.loads(subprocess.run([sys.executable, "-c", code], **words).stdout)


def test_a_task_as_prompts() -> None:
    generator = GeneratorConfig(task="chain_sum", size=30, seed=2, parameters={"max_terms": 3})
    source = load_prompts(
        DataConfig(source="reasoning_gym", generator=generator, held_out=5, template="{{ question }}\n"),
        bytes_tokenizer(),
    )
    assert len(source.training) == 25
    recipe = json.loads(source.training[0].answer)
    assert (recipe["task"], recipe["seed"], recipe["parameters"]) == ("chain_sum", 2, {"max_terms": 3})


@pytest.mark.parametrize(
    ("task", "parameters", "message"),
    [("no_such_task", {}, "not registered"), ("chain_sum", {"termz": 3}, "termz")],
)
def test_a_task_that_cannot_be_made(task: str, parameters: dict[str, int], message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        list(generate_tasks(task, size=2, seed=0, parameters=parameters))
    assert task in str(caught.value)


@pytest.mark.parametrize("answer", ["", "{}", "[]", '{"task": 3}', '{"task": "chain_sum", "seed": "x"}'])
def test_a_reference_that_is_no_task(answer: str) -> None:
    assert score("<answer>1</answer>", answer, kind="reasoning_gym").value == 0.0


def test_every_scorer_that_evaluates_is_known() -> None:
    """Of the installed version: a new one would hand responses to Python."""
    import ast
    import inspect
    import textwrap

    reasoning_gym = pytest.importorskip("reasoning_gym")
    found = set()
    for name, (dataset, _) in reasoning_gym.factory.DATASETS.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            takes_answer = any("answer" in ast.unparse(argument) for argument in call.args)
            takes_entry = any("entry" in ast.unparse(argument) for argument in call.args)
            if called.split(".")[-1] in ("eval", "exec", "parse_expr", "sympify") and takes_answer and not takes_entry:
                found.add(name)
    assert found == set(EVALUATED)


ATTACKS = [
    "__import__('os').system('id')",
    "().__class__.__bases__",
    "[x for x in (1,)]",
    "open('/etc/passwd').read()",
    "lambda: 0",
    "9**9**9",
    "2**(2**(99))",
    "9**999999999",
    "f'{1}'",
    "a.b",
    "a[0]",
    "exit()",
    "(" * 5000,
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_data_is_not_evaluated(attack: str) -> None:
    assert not is_number_formula(attack)
    assert not is_formula(attack)
    if attack.strip("("):  # else it is no Python, and evaluating it does nothing
        assert not is_literal(attack)


@pytest.mark.parametrize("text", ["(1 + 2) * 3 / 4", "7-5"])
def test_number_formulas(text: str) -> None:
    assert is_number_formula(text)


@pytest.mark.parametrize("text", ["x**2 + 3*x", "sin(2*x)/2 + C", "-4*y**3", "exp(x)*(x - 1)"])
def test_formulas(text: str) -> None:
    assert is_formula(text)


@pytest.mark.parametrize("text", ["[[1, 0], [0, 1]]", "['A', 'B']", "1 2 3\n4 5 6", "ABCDE", "-1"])
def test_literals(text: str) -> None:
    assert is_literal(text)


def test_chains_differ_by_seed() -> None:
    assert list(arithmetic.chains(20, 0, {})) != list(arithmetic.chains(20, 1, {}))
    assert list(islice(arithmetic.chains(20, 0, {}), 5)) == list(arithmetic.chains(20, 0, {}))[:5]
    assert arithmetic.demonstrate("1 + 2", random.Random(0)).endswith(("Answer: 3", "Answer: 2", "Answer: 4"))
