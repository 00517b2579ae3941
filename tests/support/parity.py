"""A pool whose verdicts an untrained model meets now and then."""

from megatron_fork import rewards


def parity(response: str, answer: str) -> bool:
    """A verifier that an untrained model passes now and then: an even number of words is right."""
    return len(response.split()) % 2 == 0


def parity_pool() -> rewards.RewardPool:
    return rewards.RewardPool(rewards.RewardsConfig(kind=f"{__name__}:parity", workers=0))
