"""The price of secure aggregation: beside Flower's legacy mod, beside the stream cipher, beside the unprotected round.

A client's steps on a vector of 62,000 parameters, with all others as neighbours, take turns with those of
``secaggplus_mod`` on the same vector, neighbours and threshold, without the messages of either. Rounds are those of
LeNet-5 in process, 50 clients that take 5 steps or 50 of batch 10 (images of CIFAR-10).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import shamirs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
from harness import Bar, Options, Result, find_data, main, ratios, take_turns

# isort: split
from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from snnfl.masking import Field, Layout, Ledger, Roster, advertise, confirm, layout, mask, reveal, share
from snnfl.masking.keys import PRIME, SEED_BYTES, add_mask, agree, derive
from snnfl.masking.shares import PACKAGE_BYTES, seal
from snnfl.updates import summed
from snnfl.workspace import workspace
from strategies.server_app import server_app

legacy = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
"""By its full name: Flower's package has a function of the same one."""

PARAMETERS, SESSION, TASK = 62_000, bytes(32), bytes(32)
CLIENTS = (10, 50, 100)


def measure(options: Options) -> list[Result]:
    """Measure a client, the masks, rounds, uploads and the server."""
    logging.disable(logging.WARNING)
    results: list[Result] = []
    for clients in CLIENTS[:1] if options.quick else CLIENTS:
        results += measure_client(clients, options)
    results.append(measure_masks(options))
    results += measure_server(20 if options.quick else 100, options)
    for steps in (5,) if options.quick else (5, 50):
        for spiking in (False, True):
            results += measure_round(steps, spiking, options)
    return results


def measure_client(clients: int, options: Options) -> list[Result]:
    """Compare a client's steps with those of Flower's mod, in turns."""
    threshold = 2 * (clients - 1) // 3 + 1
    vector = np.random.default_rng(0).normal(0, 0.1, PARAMETERS).astype(np.float32)
    ours, theirs = list[float](), list[float]()
    for _ in range(2 if options.quick else 5):
        ours.append(our_client(clients, threshold, vector))
        theirs.append(legacy_client(clients, threshold, vector))
    what = f"a client's steps, {clients} clients, threshold {threshold}"
    return [
        Result(name=f"{what}: ours", samples=tuple(1000 * s for s in ours), unit="CPU ms"),
        Result(name=f"{what}: Flower's legacy mod", samples=tuple(1000 * s for s in theirs), unit="CPU ms"),
        Result(name=f"{what}: faster", samples=ratios(theirs, ours), unit="x", bar=Bar(limit=3)),
    ]


def our_client(clients: int, threshold: int, vector: np.ndarray[Any, Any]) -> float:
    """Play client 0's steps; return their CPU seconds, without what the others do."""
    field, others = Field(clients=clients), list(range(1, clients))
    made = {client: advertise(SESSION, client, os.urandom) for client in others}
    peers = {client: public for client, (_, public) in made.items()}
    rule = Layout(neighbours=clients - 1, threshold=threshold)
    clock = Stopwatch()
    with clock:
        secrets, public = advertise(SESSION, 0, os.urandom)
        secrets, _ = share(secrets, Roster(session=SESSION, public={0: public, **peers}, rule=rule))
    packages, tokens = {}, {}
    for client in others:
        channel = X25519PrivateKey.from_private_bytes(made[client][0].channel)
        agreed = agree(channel, public.channel)
        key = derive(agreed, secrets.roster, b"shares", client, 0)
        packages[client] = seal(key, (bytes(SEED_BYTES), bytes(SEED_BYTES)), secrets.roster)
        tokens[client] = derive(agreed, secrets.roster, b"in the sum", client, 0)
    with clock:
        secrets, _ = mask(secrets, field.encode(vector, limit=64.0, weight=0.5), packages, TASK)
        secrets, _ = confirm(secrets, others[:-1], others[-1:])
        reveal(secrets, tokens)
    return clock.seconds


def legacy_client(clients: int, threshold: int, vector: np.ndarray[Any, Any]) -> float:
    """Play the same client by Flower's functions; return their CPU seconds."""
    others = {client: (generate_key_pairs(), generate_key_pairs()) for client in range(2, clients + 1)}
    known: dict[str, Any] = {
        str(client): (public_key_to_bytes(first), public_key_to_bytes(second))
        for client, ((_, first), (_, second)) in others.items()
    }
    parameters = ndarrays_to_parameters([vector])
    configs: dict[Any, Any] = {
        Key.SAMPLE_NUMBER: clients, Key.SHARE_NUMBER: clients, Key.THRESHOLD: threshold, Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 2**22, Key.MOD_RANGE: 2**32, Key.MAX_WEIGHT: 1000.0,
    }  # fmt: skip
    state = legacy.SecAggPlusState()
    state.nid, clock = 1, Stopwatch()
    with clock:
        legacy._setup(state, configs)
        legacy._share_keys(state, {"1": (state.pk1, state.pk2), **known})
    texts = []
    for client, (_, (private, _)) in others.items():
        text = share_keys_plaintext_concat(client, 1, state.rd_seed_share_dict[1], state.sk1_share_dict[1])
        texts.append(encrypt(generate_shared_key(private, bytes_to_public_key(state.pk2)), text))
    sealed: dict[Any, Any] = {Key.CIPHERTEXT_LIST: texts, Key.SOURCE_LIST: list(others)}
    asked: dict[Any, Any] = {Key.ACTIVE_NODE_ID_LIST: [1, *list(others)[:-1]], Key.DEAD_NODE_ID_LIST: [clients]}
    with clock:
        legacy._collect_masked_vectors(state, sealed, 500, parameters)
        legacy._unmask(state, asked)
    return clock.seconds


class Stopwatch:
    """Adds up the CPU seconds of what stands under it."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.process_time() - self._start


def measure_masks(options: Options) -> Result:
    """Compare adding masks with the stream cipher alone."""
    count, total = (5 if options.quick else 200), np.zeros(PARAMETERS, "<u4")
    text, buffer = bytes(total.nbytes), bytearray(total.nbytes)

    def masks() -> None:
        for number in range(count):
            add_mask(total, number.to_bytes(32, "big"))

    def cipher() -> None:
        for number in range(count):
            stream = Cipher(algorithms.ChaCha20(number.to_bytes(32, "big"), bytes(16)), mode=None).encryptor()
            stream.update_into(text, buffer)

    seconds = take_turns({"masks": masks, "cipher": cipher}, rounds=2 if options.quick else 9, device=options.device)
    rate = sorted(seconds["masks"])[len(seconds["masks"]) // 2]
    return Result(
        name="masking, of the throughput of ChaCha20 alone",
        samples=tuple(100 * r for r in ratios(seconds["cipher"], seconds["masks"])),
        unit="%",
        note=f"{count * total.nbytes / rate / 1e9:.2f} GB/s",
        bar=Bar(limit=60),
    )


def measure_server(clients: int, options: Options) -> list[Result]:
    """Time the unmasking where a tenth of the clients is gone before their upload, and where it is after it."""
    results = []
    for name, plan in (
        ("the graph of its rule", layout(clients, 0.1)),
        ("all as neighbours", Layout(neighbours=clients - 1, threshold=2 * (clients - 1) // 3 + 1)),
    ):
        gone = range(clients // 10)
        for when, uploading in (("before", range(clients // 10, clients)), ("after", range(clients))):
            ledger, uploads, told = played(clients, plan, uploading, [c for c in range(clients) if c not in gone])

            def unmask(ledger: Ledger = ledger, uploads: Any = uploads, told: Any = told) -> None:
                for client, revealed in told.items():
                    ledger.check(client, revealed, uploads)
                ledger.unmask(uploads)

            rounds = 1 if options.quick or name != "the graph of its rule" else 3
            seconds = take_turns({"": unmask}, rounds=rounds, device=options.device)[""]
            bar = Bar(limit=2, at_most=True) if name == "the graph of its rule" else None
            what = f"server, {clients} clients, {len(gone)} gone {when} their upload, {name}"
            note = f"{plan.neighbours} neighbours, threshold {plan.threshold}"
            results.append(Result(name=what, samples=seconds, unit="CPU s", note=note, bar=bar))
    return results


def played(clients: int, plan: Layout, uploading: Any, telling: Any) -> tuple[Ledger, dict[int, Any], dict[int, Any]]:
    """Play a round up to what clients tell in its last step."""
    pairs = {client: advertise(SESSION, client, os.urandom) for client in range(clients)}
    public = {client: keys for client, (_, keys) in pairs.items()}
    roster = Roster(session=SESSION, public=public, rule=plan)
    ledger = Ledger(session=SESSION, threshold=plan.threshold, graph=roster.graph, public=public)
    secrets = {client: made for client, (made, _) in pairs.items()}
    for client in range(clients):
        secrets[client], shared = share(secrets[client], roster)
        ledger.accept(client, shared)
    vector, uploads = np.zeros(PARAMETERS, "<u4"), dict[int, Any]()
    for client in uploading:
        secrets[client], uploads[client] = mask(secrets[client], vector, ledger.packages(client), TASK)
    for client in uploads:
        secrets[client], tokens = confirm(secrets[client], *ledger.asked(client, uploads))
        ledger.confirmed(client, tokens, uploads)
    told = {c: reveal(secrets[c], ledger.tokens[c]) for c in telling if c in uploads}
    return ledger, uploads, told


class EnoughError(Exception):
    """Stops a run that has been timed."""


def measure_round(steps: int, spiking: bool, options: Options) -> list[Result]:
    """Compare rounds of 50 clients with and without secure aggregation; they take turns run by run."""
    if not options.quick and find_data("cifar10") is None:
        sys.exit("error: no CIFAR-10 here: snnfl data fetch cifar10, or set SNNFL_DATA to its folder")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    upload = 0.0
    turns, rounds = (1, 2) if options.quick else (2 if spiking else 4, 3) if steps < 50 else (1, 2)
    for _ in range(turns):
        for secure in (False, True):
            found, row = timed_rounds(steps, spiking, secure, rounds, options)
            seconds[secure] += found
            upload = row["bytes_up"] if secure else upload
    variant = "S-FedAvg" if spiking else "FedAvg"
    what = f"{variant}, LeNet-5, 50 clients of {steps} steps"
    over = tuple(s / p for s, p in zip(seconds[True], seconds[False], strict=True))
    bits, values = Field(clients=50).bits, values_of(spiking, options)
    return [
        Result(name=f"{what}: unprotected round", samples=tuple(1000 * s for s in seconds[False]), unit="CPU ms"),
        Result(
            name=f"{what}: secure round",
            samples=tuple(1000 * s for s in seconds[True]),
            unit="CPU ms",
            note=f"of libraries' shares, key agreements and ciphers alone {1000 * library_seconds(values, 50):.0f} ms",
        ),
        Result(name=f"{what}: secure over unprotected", samples=over, unit="x", bar=Bar(limit=1.5, at_most=True)),
        Result(
            name=f"{what}: upload over values x {bits} bits",
            samples=(upload / (50 * values * bits / 8),),
            unit="x",
            note=f"{values:,} values; packages of {PACKAGE_BYTES} bytes, digests and shares included",
            bar=Bar(limit=1.1, at_most=True),
        ),
    ]


def library_seconds(values: int, clients: int) -> float:
    """Return the CPU seconds of what libraries do for a round's masks, which no code around them can save.

    Each client splits two seeds, agrees with each neighbour on two keys, and adds a cipher's stream for each and one of
    its own.
    """
    plan, key = layout(clients, 0.1), X25519PrivateKey.generate()
    other, text = key.public_key(), bytes(4 * values)
    buffer, clock = bytearray(len(text)), Stopwatch()
    with clock:
        for _ in range(clients):
            for _ in range(2):
                shamirs.shares(0, quantity=plan.neighbours, modulus=PRIME, threshold=plan.threshold)
            for _ in range(2 * plan.neighbours):
                key.exchange(other)
            for _ in range(plan.neighbours + 1):
                Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor().update_into(text, buffer)
    return clock.seconds


def timed_rounds(
    steps: int, spiking: bool, secure: bool, rounds: int, options: Options
) -> tuple[list[float], dict[str, Any]]:
    """Run some rounds after one that doesn't count; return the CPU seconds of each, and the last row."""
    ticks, rows = list[float](), list[dict[str, Any]]()

    def tick(row: dict[str, Any]) -> None:
        ticks.append(time.process_time())
        rows.append(row)
        if len(ticks) > rounds:
            raise EnoughError

    with tempfile.TemporaryDirectory() as folder:
        images = 10 * steps
        config = compose(
            None,
            [
                *data_of(options), f"data.training_images={1000 if options.quick else 50 * images}", "data.clients=50",
                "run.rounds=100", f"run.directory={folder}", "run.keep_checkpoints=0", "data.minimum_samples=1",
                "training.epochs=1", "training.batch_size=10", "evaluation.images=1", "evaluation.clients=false",
                f"strategy.spiking={str(spiking).lower()}", f"strategy.secure_aggregation={str(secure).lower()}",
            ],
        )  # fmt: skip
        with suppress(EnoughError):
            run_in_process(server_app(tick), client_app, run_config=flatten(config), clients=50)
    return [b - a for a, b in pairwise(ticks)], rows[-1]


def data_of(options: Options) -> list[str]:
    """Return the options of a run's data."""
    root = os.environ.get("SNNFL_DATA", "/tmp/snnfl-data")
    return ["data.source=digits"] if options.quick else ["data.source=cifar10", f"data.root={root}"]


def values_of(spiking: bool, options: Options) -> int:
    """Count the values of a client's vector for LeNet-5: parameters and statistics, and of an S-client its network."""
    work = workspace(compose(None, [*data_of(options), "data.clients=50", f"strategy.spiking={str(spiking).lower()}"]))
    return summed(work.config, work.format, examples=100, follows=False).length


if __name__ == "__main__":
    main("secure_aggregation", measure)
