"""Non-IID partitions, literally: Li et al., "Federated learning on non-IID data silos", ICDE 2022, and its code.

``quantity``: section IV-C, "quantity skew"; all is drawn again while a client has fewer than the minimum. ``labels``:
section IV-A, "distribution-based label imbalance". The authors' code, as that of MOON, balances: a client that has its
``1/N`` of all examples gets none of the labels that are left. Yurochkin et al. (ICML 2019) did so first. Where all that
are left have drawn a share of exactly zero, that code divides by zero; here it is another draw.
"""

import numpy as np


def quantity(count, clients, beta, minimum, draws):
    """Return each client's number of examples, and how often was drawn."""
    for attempt in range(1, 10**6):
        q = draws.dirichlet([beta] * clients)
        ends = [int(total * count) for total in np.cumsum(q)[:-1]]
        sizes = [end - start for start, end in zip([0, *ends], [*ends, count], strict=True)]
        if min(sizes) >= minimum:
            return sizes, attempt
    raise RuntimeError("no draw fits")


def labels(counts, clients, beta, minimum, draws, balance):
    """Return ``n[k][j]``, the examples of label k that client j gets, and how often was drawn."""
    for attempt in range(1, 10**6):
        sizes, given = [0] * clients, []
        for count in counts:
            p = draws.dirichlet([beta] * clients)
            if balance:
                p = np.array([p_j if size < sum(counts) / clients else 0.0 for p_j, size in zip(p, sizes, strict=True)])
                if not p.sum():
                    break
                p = p / p.sum()
            ends = [int(total * count) for total in np.cumsum(p)[:-1]]
            given.append([end - start for start, end in zip([0, *ends], [*ends, count], strict=True)])
            sizes = [size + more for size, more in zip(sizes, given[-1], strict=True)]
        if len(given) == len(counts) and min(sizes) >= minimum:
            return given, attempt
    raise RuntimeError("no draw fits")
