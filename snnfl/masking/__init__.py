"""Secure aggregation: a server learns the sum of its clients' vectors and nothing else (docs/provable-privacy.md)."""

from snnfl.masking.field import Field, FieldError
from snnfl.masking.graph import FEWEST_CLIENTS, Layout, graph_of, layout
from snnfl.masking.keys import KEY_BYTES, ProtocolError, PublicKeys, check_keys
from snnfl.masking.participant import Revealed, Secrets, Shared, advertise, confirm, mask, reveal, share
from snnfl.masking.roster import Roster
from snnfl.masking.unmasking import Ledger, UnmaskingError

__all__ = [
    "FEWEST_CLIENTS",
    "KEY_BYTES",
    "Field",
    "FieldError",
    "Layout",
    "Ledger",
    "ProtocolError",
    "PublicKeys",
    "Revealed",
    "Roster",
    "Secrets",
    "Shared",
    "UnmaskingError",
    "advertise",
    "check_keys",
    "confirm",
    "graph_of",
    "layout",
    "mask",
    "reveal",
    "share",
]
