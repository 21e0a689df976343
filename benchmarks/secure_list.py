"""Measure what it takes to tell each client of secure aggregation who is in its round.

Of as many clients as ``--clients`` says, all of them signing: the bytes of one client's list, as Flower sends it, and
the CPU time in which that client reads it, finds its neighbours, checks their signatures and shares its seeds.
One line per number of clients, medians of ``--times``: ``python benchmarks/secure_list.py --clients 100 1000``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from harness import use_app

use_app()

from snnfl.masking import KEY_BYTES, Roster, advertise, layout, share, wire  # noqa: E402
from snnfl.masking.graph import graph_of  # noqa: E402
from snnfl.masking.identity import sign, verify  # noqa: E402


def measure(clients: int, times: int) -> str:
    """Play the second step of one client."""
    session, key = os.urandom(KEY_BYTES), ec.generate_private_key(ec.SECP384R1())
    made = {client: advertise(session, client, os.urandom) for client in range(clients)}
    known = {client: (public, sign(key, session, client, public)) for client, (_, public) in made.items()}
    everybody = {client: public for client, (public, _) in known.items()}
    near = Roster(session=session, public=everybody, rule=layout(clients, 0.1)).graph[0]
    seconds = []
    for _ in range(times):
        record = ConfigRecord(dict(wire.roster(session, known, near)))
        layout.cache_clear()  # a SuperNode starts a process for each message
        graph_of.cache_clear()
        start = time.process_time()
        _, told = wire.read_roster(record)
        public = {client: keys for client, (keys, _) in told.items()}
        roster = Roster(session=session, public=public, rule=layout(clients, 0.1))
        for client in roster.peers(0):
            verify({client: key.public_key()}, session, client, *told[client])
        share(made[0][0], roster)
        seconds.append(time.process_time() - start)
    size = recorddict_to_proto(RecordDict({"secure": record})).ByteSize()
    return (
        f"{clients} clients, {len(near)} neighbours: {size / 1000:.1f} kB to each, {size * clients / 1e6:.1f} MB to "
        f"all; {1000 * statistics.median(seconds):.0f} CPU ms ({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})"
    )


def main() -> None:
    """Print one line per number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000], help="in a round (default: 100 1000)")
    parser.add_argument("--times", type=int, default=9, help="to measure (default: 9)")
    arguments = parser.parse_args()
    for clients in arguments.clients:
        print(measure(clients, arguments.times), flush=True)


if __name__ == "__main__":
    main()
