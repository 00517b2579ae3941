"""A verifier of your own: what is right counts half if it took many words.

    cd examples/scripts && megatron-fork train quickstart rewards.kind=custom_reward:short_and_right

It runs in processes that can be killed, or here with `rewards.workers=0`; its reason stands in the traces and on the page.
"""

from megatron_fork.rewards import score


def short_and_right(response: str, answer: str) -> tuple[float, str]:
    """The score of a response from 0 to 1, and why."""
    found = score(response, answer, kind="reach")
    words = len(response.split())
    if found.value and words > 30:
        return 0.5, f"right, in {words} words"
    return found.value, found.reason
