"""FedNova, literally: Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020.

``a_i = [1 - rho^tau_i, 1 - rho^(tau_i - 1), ..., 1 - rho] / (1 - rho)`` for SGD with momentum ``rho``, whose buffer
starts anew in each round, and ``tau_eff = sum_i p_i ||a_i||_1``. A client's normalised gradient
``d_i = G_i a_i / ||a_i||_1`` is what it changed over ``eta ||a_i||_1``. Running statistics are averaged.
"""

import copy

import torch
from references.fedavg import client_update
from references.statistics import average_statistics


def run(model, data, rounds, *, rate, rho=0.9, uniform=False):
    for t in range(1, rounds + 1):
        sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in data[t]]
        p = [size / sum(sizes) for size in sizes]
        locals_, d, norms = [], [], []
        for epochs in data[t]:
            local = copy.deepcopy(model)
            client_update(local, epochs, rate)
            tau = sum(len(batches) for batches in epochs)
            norms.append(sum((1 - rho**left) / (1 - rho) for left in range(tau, 0, -1)))
            pairs = zip(model.parameters(), local.parameters(), strict=True)
            d.append([(x - y).detach() / (rate * norms[-1]) for x, y in pairs])
            locals_.append(local)
        tau_eff = sum(p_i * norm for p_i, norm in zip(p, norms, strict=True))
        with torch.no_grad():
            for j, x in enumerate(model.parameters()):
                x -= tau_eff * sum(p_i * rate * d_i[j] for p_i, d_i in zip(p, d, strict=True))
        average_statistics(model, locals_, sizes)
    return model
