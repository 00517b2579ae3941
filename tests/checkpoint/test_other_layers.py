"""A checkpoint that local layers wrote is read by Transformer Engine's, and the other way round: a run may change machines."""

from pathlib import Path

import pytest
import torch
from support import engine_on_cpu
from support.layouts import model_config
from support.ranks import run_on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(engine_on_cpu.cannot_run(), reason=engine_on_cpu.REASON),
]


def moved(folder: str, written: str, read: str) -> bool:
    """Whether the weights that layers of one backend wrote are those that layers of the other have after reading them."""
    engine_on_cpu.stand_in()
    from megatron_fork.checkpoint import Checkpoints, load_training_state
    from megatron_fork.conversion import iter_hf_weights
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.models import ComputeConfig
    from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig

    hf_config = model_config(tied=True, experts=False)
    checkpoints = Checkpoints(Path(folder), write_model_files=hf_config.save_pretrained)
    with parallel_layout(ParallelConfig()) as layout:

        def made(backend: str) -> Policy:
            compute = ComputeConfig(backend=backend)  # type: ignore[arg-type]
            return Policy(PolicyConfig(precision="bf16"), OptimizerConfig(), hf_config, layout, compute=compute)

        first = made(written)
        checkpoints.save(1, {"policy": first}, {"step": 1})
        checkpoints.wait()
        saved = checkpoints.latest()
        assert saved is not None
        second = made(read)
        with torch.no_grad():
            for parameter in second.model[0].parameters():
                parameter.zero_()
        load_training_state(saved, {"policy": second})
        theirs = dict(iter_hf_weights(second.model))
        return all(torch.equal(tensor, theirs[name]) for name, tensor in iter_hf_weights(first.model))


@pytest.mark.parametrize("backends", [("local", "transformer_engine"), ("transformer_engine", "local")])
def test_layers_change_between_writing_and_reading(tmp_path: Path, backends: tuple[str, str]) -> None:
    assert run_on_ranks(moved, 1, str(tmp_path), *backends, are_new=True, have_children=True)[0]
