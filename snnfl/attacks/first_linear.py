"""What a convolutional network gives its first linear layer: of images, and as an update tells it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from snnfl.attacks.exact import separate
from snnfl.attacks.networks import Arrays, Network, normalised_layers
from snnfl.attacks.problem import Problem
from snnfl.attacks.reconstruction import AttackError
from snnfl.attacks.statistics import as_running, lacks_statistics, with_statistics
from snnfl.threat import ServerView


@dataclass(frozen=True, eq=False)
class Told:
    """A client's update, or a rehearsed one, and what it tells.

    Attributes:
        problem: To be solved.
        labels: Of its images.
        features: Inputs of the first linear layer, rows of length 1, ``[B, in]``.
        note: What of the problem is a guess; empty if nothing is.
        misfit: How far features of the images that public ones expect are from those told, where that was asked.
    """

    problem: Problem
    labels: Tensor
    features: Tensor
    note: str = ""
    misfit: float = 0.0


@dataclass(frozen=True, eq=False)
class FirstLinear:
    """The first linear layer of a network.

    Images of a batch that is normalised as a whole depend on each other by its statistics alone, and where the update
    tells these, the network in eval mode with them as its running ones makes of each image what the client's made.

    Attributes:
        name: Of the layer.
        made: Makes its inputs, ``[N, in]``, of a problem's arrays and a batch as the client did.
        each: The same where each image is by itself, so that others' can be compared with it; ``None`` where images
            depend on each other, and nothing tells how.
        running: Makes for that running statistics of a batch's own; ``None`` where images don't depend on each other.
    """

    name: str
    made: Network
    each: Network | None
    running: Callable[[Tensor], Arrays] | None

    def laid_out(self, view: ServerView, problem: Problem) -> Problem:
        """Add to a problem what the update tells of its batch's statistics."""
        return problem if self.running is None else self._normalised(with_statistics(view, problem))

    def told(self, problem: Problem, labels: Tensor, generator: torch.Generator) -> Told:
        """Read off a client's update, or a rehearsed one, what it tells of its images."""
        problem = self._normalised(problem)
        return Told(problem, labels, _features(problem, self.name, generator))

    def _normalised(self, problem: Problem) -> Problem:
        """Let the arrays have the statistics that are seen, which those of a rehearsal are others than the victim's."""
        if self.running is None:
            return problem
        return replace(problem, arrays={**problem.arrays, **self.running(problem.seen)})

    def unit(self, problem: Problem, samples: Tensor) -> Tensor:
        """Return what samples would give the layer in rows of length 1, zeros where a client's arrays make no numbers.

        Args:
            problem: With the arrays.
            samples: Normalised, ``[N, *input_shape]``.
        """
        each = self.each or self.made
        if problem.count == 1:  # that may be normalised by itself
            own = vmap(lambda sample: each(problem.arrays, sample[None])[0])(samples)
        else:
            own = each(problem.arrays, samples)
        return functional.normalize(own.flatten(1).nan_to_num(0.0, 0.0, 0.0), dim=1, eps=1e-30)


def first_linear_of(view: ServerView) -> FirstLinear:
    """Return the first linear layer of a view's model.

    Raises:
        AttackError: If there is none.
    """
    name, _, _ = first_linear(view.model)
    known = view.knowledge
    mode = known.norm_mode or "train"
    made = inputs_of(view.model, name, mode)
    if not normalised_layers(view.model) or mode == "eval" or known.images == 1:
        return FirstLinear(name, made, each=made, running=None)
    running = None
    if known.images and known.rounds == 1 and "individual" in known.facts and lacks_statistics(view) is None:
        running = as_running(view.model, view.input_shape, known.images)
    return FirstLinear(name, made, None if running is None else inputs_of(view.model, name, "eval"), running)


def first_linear(model: nn.Module) -> tuple[str, nn.Linear, nn.Module | None]:
    """Return name and module of the first linear layer, and the module that is defined behind it.

    Raises:
        AttackError: If there is none.
    """
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    for (name, module), (_, behind) in zip(leaves, [*leaves[1:], ("", None)], strict=True):
        if isinstance(module, nn.Linear):
            return name, module, behind
    raise AttackError("the model has no linear layer")


def inputs_of(model: nn.Module, layer: str, norm_mode: Literal["train", "eval"]) -> Network:
    """Return what one layer is given, as a function of the model's arrays and of inputs, ``[N, in]``.

    Args:
        model: Of one tensor argument. It isn't changed.
        layer: Name of the layer.
        norm_mode: As of :func:`~snnfl.attacks.networks.network_of`.
    """
    template = copy.deepcopy(model).eval()
    if norm_mode == "train" and normalised_layers(template):
        template = torch.func.replace_all_batch_norm_modules_(template)
    names = {name for name, _ in [*template.named_parameters(), *template.named_buffers()]}
    given: list[Tensor] = []
    template.get_submodule(layer).register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))

    def inputs(arrays: Mapping[str, Tensor], images: Tensor) -> Tensor:
        given.clear()
        torch.func.functional_call(template, {k: array for k, array in arrays.items() if k in names}, (images,))
        return given.pop()

    return inputs


def _features(problem: Problem, layer: str, generator: torch.Generator) -> Tensor:
    """Return the layer's inputs, ``[B, in]``, each up to a positive factor.

    The bias's gradient is the sum of the slopes, so it tells the sign of each one, and of the input beside it. Without
    it the sign is that of most inputs, which is right behind ReLU.
    """
    gradient = problem.gradient(f"{layer}.weight").double()
    found = separate(gradient, problem.count, generator)
    main = torch.linalg.svd(gradient.nan_to_num(), full_matrices=False)[2][:1]
    sides, features = main.sum(1), main[:0] if found is None else found.inputs
    shares = features.sum(1)
    if (bias := f"{layer}.bias") in problem.target:
        told = problem.gradient(bias).double().nan_to_num()
        sides = main @ (gradient.nan_to_num().T @ told)
        if found is not None:
            shares = torch.linalg.lstsq(found.slopes, told[:, None]).solution[:, 0]
    missing = problem.count - len(features)
    features = torch.cat([features, main.expand(missing, -1)])
    signs = torch.where(torch.cat([shares, sides.expand(missing)]) < 0, -1.0, 1.0)
    features = signs[:, None] * features
    unit: Tensor = features / features.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return unit.float()
