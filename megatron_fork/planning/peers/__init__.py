"""Settings of other trainers beside those of a recipe: a table a trainer, readers of their files, and the translation."""

from megatron_fork.planning.peers.nemo_rl import NEMO_RL
from megatron_fork.planning.peers.reference import reference
from megatron_fork.planning.peers.slime import SLIME
from megatron_fork.planning.peers.table import PeerTable
from megatron_fork.planning.peers.translation import PEERS, TranslatedRow, Translation, translate
from megatron_fork.planning.peers.trl import TRL
from megatron_fork.planning.peers.verl import VERL

__all__ = [
    "NEMO_RL",
    "PEERS",
    "SLIME",
    "TRL",
    "VERL",
    "PeerTable",
    "TranslatedRow",
    "Translation",
    "reference",
    "translate",
]
