"""FedProx, literally: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, algorithm 2."""

import copy

import torch
from torch.nn import functional


def client_update(model, epochs, rate, mu):
    """Minimise ``h_k(w; w_t) = F_k(w) + mu/2 |w - w_t|^2`` (equation 2)."""
    received = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for batches in epochs:
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), labels)
            for w, w_t in zip(model.parameters(), received.parameters(), strict=True):
                loss = loss + mu / 2 * torch.norm(w - w_t.detach()) ** 2
            loss.backward()
            optimizer.step()


def run(model, data, rounds, *, rate, mu, uniform=False):
    for t in range(1, rounds + 1):
        average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in data[t]]
        for k, epochs in enumerate(data[t]):
            local = copy.deepcopy(model)
            client_update(local, epochs, rate, mu)
            for name, value in local.state_dict().items():
                if value.is_floating_point():
                    average[name] += sizes[k] / sum(sizes) * value
        model.load_state_dict(average)
    return model
