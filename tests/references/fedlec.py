"""FedLEC, literally, after the authors' code of 12 January 2025 (github.com/AmazingDD/FedLEC, be7a25b, ``main.py``).

Yu et al., "FedLEC: Effective federated learning algorithm with spiking neural networks under label skews", arXiv
2412.17305v1. ``tau`` is 1 there; the code of 24 April 2025 (f3d62b5) is that with ``tau = 0``. The global model is in
evaluation mode, in which the authors' is from its first evaluation on.
"""

import copy
import math

import torch
from torch.nn import functional


def client_update(model, epochs, rate, tau, theta, lamda, classes):
    teacher = copy.deepcopy(model).eval()
    counts = [0.0] * classes
    for _, labels in epochs[-1]:
        for label in labels.tolist():
            counts[label] += 1
    prior = [count / sum(counts) for count in counts]
    missing = [c for c in range(classes) if prior[c] == 0]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    for batches in epochs:
        for inputs, labels in batches:
            optimizer.zero_grad()
            out = model(inputs)
            log_prior = torch.log(torch.tensor(prior) + 1e-9)
            loss = functional.cross_entropy(out + tau * log_prior, labels)
            for c in range(classes):  # the gap of the logits of label c, over the batch
                gap = 0.0
                for b, label in enumerate(labels.tolist()):
                    balanced = out[b, c] - log_prior[c] + math.log(1 / classes + 1e-9)
                    gap = gap + torch.exp(balanced if label != c else torch.zeros(()))
                loss = loss - theta * prior[c] * (math.log(len(labels)) - torch.log(gap))
            if missing:
                p = functional.softmax(teacher(inputs).detach()[:, missing], dim=1)
                q = functional.softmax(out[:, missing], dim=1)
                loss = loss + lamda * (p * (torch.log(p) - torch.log(q))).sum() / len(labels)
            loss.backward()
            optimizer.step()


def run(model, data, rounds, *, rate, tau, theta, lamda, classes=10, uniform=False):
    for t in range(1, rounds + 1):
        average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        sizes = [1 if uniform else sum(len(labels) for _, labels in epochs[-1]) for epochs in data[t]]
        for k, epochs in enumerate(data[t]):
            local = copy.deepcopy(model)
            client_update(local, epochs, rate, tau, theta, lamda, classes)
            for name, value in local.state_dict().items():
                if value.is_floating_point():
                    average[name] += sizes[k] / sum(sizes) * value
        model.load_state_dict(average)
    return model
