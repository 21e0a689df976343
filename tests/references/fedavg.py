"""Federated averaging, literally: McMahan et al., "Communication-efficient learning", AISTATS 2017, algorithm 1.

``uniform`` is SNFL's equation 2, ``1/K`` for every client.
"""

import copy

import torch
from torch.nn import functional


def client_update(model, epochs, rate):
    """``ClientUpdate(k, w)``; momentum is SNFL's (section 5.2) and starts anew in each round."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for batches in epochs:
        for inputs, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()


def run(model, data, rounds, *, rate, uniform=False):
    """``data(t, k)`` returns client k's epochs of batches in round t; return the model after the last round."""
    for t in range(1, rounds + 1):
        average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in data[t]]
        for k, epochs in enumerate(data[t]):
            local = copy.deepcopy(model)
            client_update(local, epochs, rate)
            for name, value in local.state_dict().items():
                if value.is_floating_point():
                    average[name] += sizes[k] / sum(sizes) * value
        model.load_state_dict(average)
    return model
