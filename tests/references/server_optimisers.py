"""Optimisers on the server, literally.

FedAvgM: Hsu et al., "Measuring the effects of non-identical data distribution", 2019, section 4.3. FedAdagrad, FedAdam
and FedYogi: Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2. Flower departs from the latter
twice: it starts from ``v = 0`` where the paper has ``v >= tau^2``, and FedAdam corrects the bias of its moments as
Kingma & Ba (2015) do, one step ahead: with ``t + 1`` in round t.
"""

import copy
import math

import torch
from references.statistics import average_statistics
from torch.nn import functional


def pseudo_gradient(model, epochs_of_clients, rate, uniform):
    """``Delta_t``: the mean over clients, weighted by examples or not, of ``w_k - w_t``; statistics are averaged."""
    sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in epochs_of_clients]
    locals_ = []
    delta = [torch.zeros_like(w) for w in model.parameters()]
    for size, epochs in zip(sizes, epochs_of_clients, strict=True):
        local = copy.deepcopy(model)
        optimizer = torch.optim.SGD(local.parameters(), lr=rate, momentum=0.9)
        for batches in epochs:
            for inputs, labels in batches:
                optimizer.zero_grad()
                functional.cross_entropy(local(inputs), labels).backward()
                optimizer.step()
        for d, w_k, w in zip(delta, local.parameters(), model.parameters(), strict=True):
            d += size / sum(sizes) * (w_k - w).detach()
        locals_.append(local)
    average_statistics(model, locals_, sizes)
    return delta


def fedavgm(model, data, rounds, *, rate, server_rate, momentum, uniform=False):
    v = [torch.zeros_like(w) for w in model.parameters()]
    for t in range(1, rounds + 1):
        delta = pseudo_gradient(model, data[t], rate, uniform)
        v = [momentum * v_i - d for v_i, d in zip(v, delta, strict=True)]
        with torch.no_grad():
            for w, v_i in zip(model.parameters(), v, strict=True):
                w -= server_rate * v_i
    return model


def adaptive(model, data, rounds, *, rate, kind, server_rate, tau, beta_1=0.0, beta_2=0.0, uniform=False):
    m = [torch.zeros_like(w) for w in model.parameters()]
    v = [torch.zeros_like(w) for w in model.parameters()]
    for t in range(1, rounds + 1):
        delta = pseudo_gradient(model, data[t], rate, uniform)
        m = [beta_1 * m_i + (1 - beta_1) * d for m_i, d in zip(m, delta, strict=True)]
        if kind == "adagrad":
            v = [v_i + d**2 for v_i, d in zip(v, delta, strict=True)]
        if kind == "yogi":
            v = [v_i - (1 - beta_2) * d**2 * torch.sign(v_i - d**2) for v_i, d in zip(v, delta, strict=True)]
        if kind == "adam":
            v = [beta_2 * v_i + (1 - beta_2) * d**2 for v_i, d in zip(v, delta, strict=True)]
        step = server_rate
        if kind == "adam":
            step *= math.sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1))
        with torch.no_grad():
            for w, m_i, v_i in zip(model.parameters(), m, v, strict=True):
                w += step * m_i / (torch.sqrt(v_i) + tau)
    return model
