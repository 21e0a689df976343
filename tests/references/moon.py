"""MOON, literally: Li, He & Song, "Model-contrastive federated learning", CVPR 2021, algorithm 1.

What the paper leaves open is as in the authors' code: the global and the previous model are in evaluation mode.
Before a client has trained, its previous model is the common initial one.
"""

import copy

import torch
from torch.nn import functional


def representation(model, inputs):
    """``R_w(x)``: everything before the output layer."""
    for layer in list(model)[:-1]:
        inputs = layer(inputs)
    return inputs


def client_update(model, previous, epochs, rate, mu, temperature):
    received = copy.deepcopy(model).eval()
    previous = copy.deepcopy(previous).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for batches in epochs:
        for inputs, labels in batches:
            optimizer.zero_grad()
            z = representation(model, inputs)
            z_glob, z_prev = representation(received, inputs).detach(), representation(previous, inputs).detach()
            to_global = torch.exp(functional.cosine_similarity(z, z_glob) / temperature)
            to_previous = torch.exp(functional.cosine_similarity(z, z_prev) / temperature)
            contrastive = -torch.log(to_global / (to_global + to_previous))
            loss = functional.cross_entropy(list(model)[-1](z), labels) + mu * contrastive.mean()
            loss.backward()
            optimizer.step()


def run(model, data, rounds, *, rate, mu, temperature, uniform=False):
    previous = [copy.deepcopy(model) for _ in data[1]]
    for t in range(1, rounds + 1):
        average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in data[t]]
        for k, epochs in enumerate(data[t]):
            local = copy.deepcopy(model)
            client_update(local, previous[k], epochs, rate, mu, temperature)
            previous[k] = local
            for name, value in local.state_dict().items():
                if value.is_floating_point():
                    average[name] += sizes[k] / sum(sizes) * value
        model.load_state_dict(average)
    return model
