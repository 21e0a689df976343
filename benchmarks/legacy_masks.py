"""Look behind the masks of Flower's legacy secure aggregation: search the seed, take the update, look at the picture.

Two clients play ``secaggplus_mod``'s steps by Flower's own functions; each is the other's only neighbour. The victim
has taken one step of rate 0.1 on ``--batch`` images of CIFAR-10. From its masked vector, and the seed of its own mask,
which the protocol tells, the server searches all ``2^32`` seeds of the mask that the two share, and gives what is left
to the attack ``closed_form``. ``python benchmarks/legacy_masks.py``, which searches for some minutes; ``--seeds N``
searches a range of N that holds the seed, and says how long all would take.
"""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from exact_batches import trained, view_of
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from torch import Tensor

from snnfl.attacks import Budget, get_attack
from snnfl.attacks.pair_masks import mask_of, search
from snnfl.config import DataConfig
from snnfl.data import load
from snnfl.metrics.images import floors, matched, psnr

LARGEST, RANGE, MODULUS = 2**22, 8.0, 2**32
"""Flower's defaults: levels of a value, its range, the size of the ring."""


def masked(arrays: list[np.ndarray[Any, Any]], examples: int) -> tuple[list[np.ndarray[Any, Any]], bytes, bytes]:
    """Play the steps of two clients; return client 1's masked arrays, the seed of its own mask, and the pair's secret.

    Only the first two are the server's.
    """
    legacy: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    configs = {
        Key.SAMPLE_NUMBER: 2, Key.SHARE_NUMBER: 2, Key.THRESHOLD: 2, Key.CLIPPING_RANGE: RANGE,
        Key.TARGET_RANGE: LARGEST, Key.MOD_RANGE: MODULUS, Key.MAX_WEIGHT: 1000.0,
    }  # fmt: skip
    states = {client: legacy.SecAggPlusState() for client in (1, 2)}
    for client, state in states.items():
        state.nid = client
        legacy._setup(state, configs)
    known = {str(client): (state.pk1, state.pk2) for client, state in states.items()}
    sealed = {client: legacy._share_keys(state, dict(known)) for client, state in states.items()}
    own = {Key.CIPHERTEXT_LIST: sealed[2][Key.CIPHERTEXT_LIST], Key.SOURCE_LIST: [2]}
    reply = legacy._collect_masked_vectors(states[1], own, examples, ndarrays_to_parameters(arrays))
    secret = generate_shared_key(bytes_to_private_key(states[1].sk1), bytes_to_public_key(states[2].pk1))
    return [bytes_to_ndarray(array) for array in reply[Key.MASKED_PARAMETERS]], states[1].rd_seed, secret


def main() -> None:
    """Print a line per step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=2**32, help="how many to search; all by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--source", choices=("cifar10", "mnist", "fashion_mnist"), default="cifar10")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source=given.source, root=given.root))
    chosen = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(1))[: given.batch]
    view = view_of(data, trained(data, "mlp", 0), chosen, spiking=False)
    update = view.exchange.received
    vectors, own_seed, secret = masked([array.numpy() for array in update.values()], examples=500)

    shapes = [vector.shape for vector in vectors]
    told = pseudo_rand_gen(own_seed, MODULUS, shapes)
    residue = [(vector - mask) % MODULUS for vector, mask in zip(vectors, told, strict=True)]
    first = np.concatenate([array.flatten() for array in residue[:2]])[:8]
    start = 0
    if given.seeds < 2**32:
        seed = int(np.bitwise_xor.reduce(np.frombuffer(secret, "<u4")))
        start = max(0, min(seed - given.seeds // 2, 2**32 - given.seeds))
    search(first, sign=-1, largest=LARGEST, stop=1)  # compiles
    clock = time.process_time()
    found = search(first, sign=-1, largest=LARGEST, start=start, stop=start + given.seeds)
    minutes = (time.process_time() - clock) / 60
    rate = f"{given.seeds:,} seeds in {minutes:.2f} CPU minutes"
    whole = "" if given.seeds == 2**32 else f"; all 2^32 would take {minutes * 2**32 / given.seeds:.1f}"
    print(f"searched {rate}{whole}: {len(found)} explain the masked vector", flush=True)
    for seed in found:
        left = [(array + mask) % MODULUS for array, mask in zip(residue, mask_of(seed, shapes), strict=True)]
        weight = int(left[0][0]) / LARGEST
        names = list(update)
        values = [torch.from_numpy((array / LARGEST * 2 * RANGE - RANGE) / weight).float() for array in left[1:]]
        recovered: dict[str, Tensor] = dict(zip(names, values, strict=True))
        error = max(float((recovered[name] - update[name]).abs().max()) for name in names)
        print(f"seed {seed:08x}: the update to within {error:.1e}, its weight {weight * 1000:.0f} examples", flush=True)
        seen = replace(view, exchange=replace(view.exchange, received=recovered))
        draw = torch.Generator().manual_seed(0)
        result = get_attack("closed_form").run(seen, budget=Budget(), generator=draw)
        true = data.pixels(data.train_images[chosen])
        score = float(psnr(result.images[matched(result.images, true)], true).mean())
        blind = {name: float(psnr(guess, true).mean()) for name, guess in floors(true, true[:0]).items()}
        floor = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in blind.items())
        print(f"closed_form on it: {score:.1f} dB (without any update: {floor})")


if __name__ == "__main__":
    main()
