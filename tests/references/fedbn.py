"""FedBN, literally: Li et al., "FedBN: Federated learning on non-IID features", ICLR 2021, algorithm 1.

Layers other than batch normalisation are averaged, and every client goes on with its own batch
normalisation. FedAvg's weights by examples stand in the place of 1/K unless ``uniform``.
"""

import copy

import torch
from references.fedavg import client_update
from torch import nn


def run(model, data, rounds, *, rate, uniform=False):
    """Return the clients' models after the last round: as they are after training, and after the server's average."""
    norms = {name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)}
    models = [copy.deepcopy(model) for _ in data[1]]
    for t in range(1, rounds + 1):
        sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in data[t]]
        for own, epochs in zip(models, data[t], strict=True):
            client_update(own, epochs, rate)
        trained = copy.deepcopy(models)
        with torch.no_grad():
            for name in model.state_dict():
                if name.rpartition(".")[0] in norms:
                    continue
                parts = [size / sum(sizes) * own.state_dict()[name] for size, own in zip(sizes, models, strict=True)]
                average = sum(parts)
                for own in models:
                    own.state_dict()[name].copy_(average)
    return trained, models
