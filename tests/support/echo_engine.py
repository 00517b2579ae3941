"""An engine without a model."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from megatron_fork.experience import VersionSpan
from megatron_fork.rollout import Completion, InProcessEngine, Request


class Echo(InProcessEngine):
    """Says the prompt back."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            tokens = request.tokens[: request.max_tokens]
            yield Completion(
                request.number,
                tokens,
                [0.0] * len(tokens),
                "length",
                (VersionSpan(self.version, 0, len(tokens)),),
            )

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.parameters = sum(tensor.numel() for _, tensor in weights)
        self.version = version
