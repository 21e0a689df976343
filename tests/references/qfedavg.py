"""q-FedAvg, literally: Li et al., "Fair resource allocation in federated learning", ICLR 2020, algorithm 2."""

import copy

import torch
from references.statistics import average_statistics
from torch.nn import functional


def run(model, data, rounds, *, rate, q):
    """``L`` is 1 over the learning rate; ``F_k(w_t)`` is the received model's loss on the client's data.

    The weights of a client's update, ``F_k^q``, are those of its running statistics.
    """
    lipschitz = 1 / rate
    for t in range(1, rounds + 1):
        numerator = [torch.zeros_like(w) for w in model.parameters()]
        denominator, locals_, powers = 0.0, [], []
        model.eval()
        for epochs in data[t]:
            with torch.no_grad():
                inputs, labels = (torch.cat(parts) for parts in zip(*epochs[-1], strict=True))
                f = functional.cross_entropy(model(inputs), labels).item()
            local = copy.deepcopy(model).train()
            optimizer = torch.optim.SGD(local.parameters(), lr=rate, momentum=0.9)
            for batches in epochs:
                for inputs, labels in batches:
                    optimizer.zero_grad()
                    functional.cross_entropy(local(inputs), labels).backward()
                    optimizer.step()
            delta_w = [
                lipschitz * (w - w_k).detach() for w, w_k in zip(model.parameters(), local.parameters(), strict=True)
            ]
            squared_norm = sum(float((d.double() ** 2).sum()) for d in delta_w)
            for total, d in zip(numerator, delta_w, strict=True):
                total += f**q * d
            locals_.append(local)
            powers.append(f**q)
            denominator += q * f ** (q - 1) * squared_norm + lipschitz * f**q
        with torch.no_grad():
            for w, total in zip(model.parameters(), numerator, strict=True):
                w -= total / denominator
        average_statistics(model, locals_, powers)
    return model
