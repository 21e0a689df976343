"""Flower's legacy masks, by Flower's own code, and their search."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from snnfl.attacks.pair_masks import mask_of, search

LARGEST = 2**22


def folded(secret: bytes) -> int:
    """Fold a secret as Flower does: what the search is to find."""
    seed = 0
    for start in range(0, len(secret), 4):
        seed ^= int.from_bytes(secret[start : start + 4], "little")
    return seed


@pytest.mark.parametrize("sign", [1, -1])
def test_the_seed_of_a_mask_is_found(sign):
    values = np.random.default_rng(0).integers(0, LARGEST + 1, 12)
    secret = bytes(range(7, 39))
    (mask,) = pseudo_rand_gen(secret, 2**32, [(12,)])
    seed = folded(secret)
    np.testing.assert_array_equal(mask, mask_of(seed, [(12,)])[0])
    found = search((values + sign * mask) % 2**32, sign=sign, largest=LARGEST, start=seed - 5000, stop=seed + 5000)
    assert found == [seed]
    assert search((values + sign * mask) % 2**32, sign=sign, largest=LARGEST, start=seed + 1, stop=seed + 5000) == []
    with pytest.raises(ValueError, match="3 elements tell no seed"):
        search(mask[:3], sign=sign, largest=LARGEST)


def test_a_client_of_flowers_mod_with_one_neighbour_is_unmasked():
    """The server's view by Flower's functions: two clients, one of whose updates comes out without the other's help.

    Only the search's range is given, which the benchmark goes through in full.
    """
    legacy = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    configs = {
        Key.SAMPLE_NUMBER: 2, Key.SHARE_NUMBER: 2, Key.THRESHOLD: 2, Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: LARGEST, Key.MOD_RANGE: 2**32, Key.MAX_WEIGHT: 1000.0,
    }  # fmt: skip
    states = {}
    for client in (1, 2):
        states[client] = legacy.SecAggPlusState()
        states[client].nid = client
        legacy._setup(states[client], configs)
    known = {str(client): (state.pk1, state.pk2) for client, state in states.items()}
    sealed = {client: legacy._share_keys(state, dict(known)) for client, state in states.items()}
    update = np.random.default_rng(1).normal(0, 0.1, 50)
    own = {Key.CIPHERTEXT_LIST: sealed[2][Key.CIPHERTEXT_LIST], Key.SOURCE_LIST: [2]}
    reply = legacy._collect_masked_vectors(states[1], own, 500, ndarrays_to_parameters([update]))
    weight, vector = (bytes_to_ndarray(array) for array in reply[Key.MASKED_PARAMETERS])
    self_mask = pseudo_rand_gen(states[1].rd_seed, 2**32, [weight.shape, vector.shape])  # told by the protocol
    residue = np.concatenate([weight - self_mask[0], vector - self_mask[1]]) % 2**32

    secret = generate_shared_key(bytes_to_private_key(states[1].sk1), bytes_to_public_key(states[2].pk1))
    seed = folded(secret)
    found = search(residue, sign=-1, largest=LARGEST, start=max(0, seed - 50_000), stop=seed + 50_000)
    assert found == [seed]
    left = (residue + np.concatenate(mask_of(seed, [weight.shape, vector.shape]))) % 2**32
    recovered = (left[1:] / LARGEST * 16 - 8) / (left[0] / LARGEST)
    np.testing.assert_allclose(recovered, update, atol=1e-4)


def test_flowers_mod_tells_both_seeds_of_a_client_that_is_in_both_lists():
    """What ours refuses (tests/snnfl/masking/test_protocol.py)."""
    legacy = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    state = legacy.SecAggPlusState()
    state.threshold, state.rd_seed_share_dict, state.sk1_share_dict = 2, {1: b"mask", 2: b"own"}, {1: b"key", 2: b"own"}
    told = legacy._unmask(state, {Key.ACTIVE_NODE_ID_LIST: [1, 2], Key.DEAD_NODE_ID_LIST: [1]})
    assert list(zip(told[Key.NODE_ID_LIST], told[Key.SHARE_LIST], strict=True))[::2] == [(1, b"mask"), (1, b"key")]
