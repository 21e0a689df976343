"""Batch normalisation's running mean and variance under an optimiser on the server, literally: the clients' average.

Reddi et al. (2021) use group normalisation, for the lack of a rule. Here, whatever step an optimiser takes with the
weights, what the clients measured is averaged as FedAvg does.
"""


def average_statistics(model, local_models, weights):
    """Write into ``model`` the mean of its clients' running statistics."""
    buffers = dict(model.named_buffers())
    for name in (n for n in buffers if n.endswith(("running_mean", "running_var"))):
        total = sum(w * dict(local.named_buffers())[name] for w, local in zip(weights, local_models, strict=True))
        buffers[name].copy_(total / sum(weights))
