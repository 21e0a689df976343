"""SOLO, literally: "each client uses local private data to train its own model" (SNFL section 5.2)."""

import copy

import torch
from torch.nn import functional


def run(model, data, rounds, *, rate):
    """Return every client's model."""
    models = [copy.deepcopy(model) for _ in data[1]]
    for t in range(1, rounds + 1):
        for own, epochs in zip(models, data[t], strict=True):
            optimizer = torch.optim.SGD(own.parameters(), lr=rate, momentum=0.9)
            own.train()
            for batches in epochs:
                for inputs, labels in batches:
                    optimizer.zero_grad()
                    functional.cross_entropy(own(inputs), labels).backward()
                    optimizer.step()
    return models
