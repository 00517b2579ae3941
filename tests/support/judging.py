"""A verifier of any text, so that small models are right now and then."""


def even(response: str, answer: str) -> float:
    """Right if the response has an even number of characters."""
    return float(len(response) % 2 == 0)


# Settings with this verifier, for responses in a moment.
EVEN = ("rewards.kind=tests.support.judging:even", "rewards.workers=0", "rollout.max_response_tokens=20")
