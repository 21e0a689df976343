"""What the running statistics of batch normalisation, which every update holds, say of the private batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snnfl.attacks.local import LocalTraining
from snnfl.attacks.networks import Arrays, Network, normalised_layers
from snnfl.attacks.problem import Problem
from snnfl.batching import batch_sizes
from snnfl.threat import ServerView

STATISTICS_WEIGHT = 0.1
"""Weight of the statistics' distance beside a cosine distance."""

FIELDS = ("running_mean", "running_var")


def batch_statistics_of(model: nn.Module) -> Network:
    """Return what batch normalisation sees of a batch, as a function of the model's arrays.

    The function's value has the shape ``[2, channels of all normalisations]``: means, and variances with the divisor
    ``n - 1``, which is what PyTorch moves its running statistics by.
    """
    template = torch.func.replace_all_batch_norm_modules_(copy.deepcopy(model).eval())
    names = {name for name, _ in template.named_parameters()}
    norms = _norms(template)

    def statistics(arrays: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        found: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            value = arguments[0].transpose(0, 1).flatten(1)
            found[module] = torch.stack([value.mean(1), value.var(1)])

        handles = [module.register_forward_pre_hook(note) for module in norms.values()]
        try:
            given = {name: array for name, array in arrays.items() if name in names}
            torch.func.functional_call(template, given, (inputs,))
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([found[module] for module in norms.values() if module in found], dim=1)

    return statistics


def _norms(model: nn.Module) -> dict[str, nn.BatchNorm1d | nn.BatchNorm2d]:
    """Return a model's batch normalisations by name, in the order of definition."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}


def as_running(model: nn.Module, input_shape: Sequence[int], count: int) -> Callable[[Tensor], Arrays] | None:
    """Return what makes running statistics of a batch's own, so that eval mode gives each image what the batch gave it.

    A batch is normalised by its variances with the divisor ``n``, and moves running ones by those with ``n - 1``.

    Args:
        model: On the meta device: it is called once, on a batch of two that nobody computes.
        input_shape: Of one image.
        count: Images in the batch.

    Returns:
        A function of a batch's statistics, as :func:`batch_statistics_of` has them; ``None`` of a model that doesn't
        run there, or doesn't call each normalisation once.
    """
    template, numbers = copy.deepcopy(model).to("meta").eval(), dict[nn.Module, list[int]]()

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        numbers.setdefault(module, []).append(arguments[0].numel() // arguments[0].shape[1] * count // 2)

    norms = _norms(template)
    for module in norms.values():
        module.register_forward_pre_hook(note)
    try:
        with torch.no_grad():
            template(torch.zeros(2, *input_shape, device="meta"))
    except Exception:  # of somebody else's code, on a device that it may not know
        return None
    if any(len(numbers.get(module, [])) != 1 for module in norms.values()):
        return None
    shares = {name: 1 - 1 / numbers[module][0] for name, module in norms.items()}
    channels = [module.num_features for module in norms.values()]

    def arrays(statistics: Tensor) -> Arrays:
        found: Arrays = {}
        parts = torch.split(statistics, channels, dim=1)
        for (name, share), (mean, variance) in zip(shares.items(), parts, strict=True):
            found |= {f"{name}.{FIELDS[0]}": mean, f"{name}.{FIELDS[1]}": share * variance}
        return found

    return arrays


def with_statistics(view: ServerView, problem: Problem) -> Problem:
    """Add to a problem that the private batches' statistics are to be met, too."""
    return replace(problem, statistics=batch_statistics_of(view.model), seen=observed_statistics(view, problem.steps))


def lacks_statistics(view: ServerView) -> str | None:
    """Say why a view tells nothing of its batches' statistics, or ``None`` if it does."""
    if not normalised_layers(view.model):
        return "the model has no batch normalisation"
    if view.knowledge.norm_mode == "eval":
        return "the client's batch normalisation ran in eval mode, which moves no running statistics"
    names, exchange = view.format.statistic_names, view.exchange
    for name, module in _norms(view.model).items():
        if not module.momentum:
            return f"{name!r} has momentum={module.momentum}, by which running statistics tell no batch's"
        for field in (f"{name}.{field}" for field in FIELDS):
            if field not in exchange.sent or names.get(field) not in exchange.received:
                return f"the exchange holds no {field!r}"
    return None


def observed_statistics(view: ServerView, steps: int) -> Tensor:
    """Return the mean over the round's batches of their statistics, newer ones weighing more: exact for one step.

    A step moves a running statistic by ``r <- (1 - m) r + m s``, so that after ``K`` steps
    ``sum_k m (1 - m)^(K-1-k) s_k = r_K - (1 - m)^K r_0``; divided by ``1 - (1 - m)^K`` that is a weighted mean.

    Args:
        view: Of a plain or an S-run with batch normalisation.
        steps: ``K``.

    Returns:
        As the value of :func:`batch_statistics_of`.
    """
    sent, received, names, columns = view.exchange.sent, view.exchange.received, view.format.statistic_names, []
    for name, module in _norms(view.model).items():
        kept = (1 - (module.momentum or 0.0)) ** steps
        before = torch.stack([sent[f"{name}.{field}"] for field in FIELDS])
        after = torch.stack([received[names[f"{name}.{field}"]] for field in FIELDS])
        columns.append((after - kept * before) / (1 - kept))
    return torch.cat(columns, dim=1)


def statistics_distance(
    statistics: Network, arrays: Arrays, images: Tensor, local: LocalTraining, seen: Tensor
) -> Tensor:
    """Compare the statistics of dummy batches, before any step, with those observed, in units of the observed variance.

    ``mean((mu - mu*)^2 / var*) + mean((var/var* - 1)^2)`` over the channels of all normalisations: the regulariser of
    GradInversion (Yin et al. 2021, eq. 6) with the private batch's statistics in place of a public data set's.
    """
    found = mean_statistics(statistics, arrays, images, local)
    variance = seen[1].clamp_min(1e-12)
    return ((found[0] - seen[0]).square() / variance).mean() + (found[1] / variance - 1).square().mean()


def mean_statistics(statistics: Network, arrays: Arrays, images: Tensor, local: LocalTraining) -> Tensor:
    """Return the mean of the statistics of the batches that images are trained in, before any step."""
    parts = torch.split(images, batch_sizes(len(images), local.batch_size))
    return torch.stack([statistics(arrays, part) for part in parts]).mean(0)
