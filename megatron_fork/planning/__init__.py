"""Before a job is queued: what settings of other trainers are called here."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.planning.peers import PEERS, PeerTable, Row, Translation, reference, translate
else:
    __getattr__ = opened(__name__, __file__)

__all__ = ["PEERS", "PeerTable", "Row", "Translation", "reference", "translate"]
