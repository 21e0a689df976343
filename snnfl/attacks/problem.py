"""From what a server holds to the problem that an inversion solves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from snnfl.attacks.compressed import is_sparse, made_by, rounding_share, steps_between
from snnfl.attacks.decay import decay_in
from snnfl.attacks.local import LocalTraining, decayed, difference
from snnfl.attacks.networks import Arrays, Network, classes_of, last_linear, network_of, normalised_layers, rows_of
from snnfl.attacks.penalties import penalty_of
from snnfl.batching import batch_count
from snnfl.models import SpikingModel
from snnfl.threat import Exchange, PublicImages, ServerView, ThreatModelError

Thresholds: TypeAlias = Callable[[Mapping[str, Tensor], Tensor], tuple[Tensor, ...]]
"""``(arrays by name, inputs [N, ...]) -> the thresholds of each layer``, as a conversion finds them."""

LARGEST_LATENT = 3.0
"""In standard deviations, from where a generative model has hardly seen any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Find images whose local training gives an observed update.

    Attributes:
        network: What the client trained, as a function.
        arrays: Its arrays at the start of the round, as far as the attacker knows or guesses them.
        target: Observed ``(sent - returned) / learning_rate`` of the arrays whose change was seen.
        local: How the client trained.
        count: Number of images.
        input_shape: Of one of them.
        classes: Number of labels.
        low: Smallest normalised value of a pixel, shape ``[C, 1, 1]`` or ``[features]``.
        high: Largest one.
        statistics: What batch normalisation sees of a batch, where the private batches' own is to be met.
        seen: That of the private batches; empty without.
        earlier: Arrays and target of earlier rounds in which the client trained on the same images, if they are to be
            explained, too.
        calibration: The thresholds of images that calibrate, where the private ones are to be met.
        told: Those of the update; empty without.
        public: Images of no client.
        orders: Which images each epoch takes, in its order, ``[epochs, count]``; ``None`` where that is not known, or
            there is one step.
        generative_model: Where images are to be drawn by one, instead of pixel by pixel.
        rounding: Between neighbouring codes of a quantised target, by array; empty without.
        sparse: Whether most entries of the target are zero because they weren't sent.
        decay: What of the target is weight decay of the arrays at the start, as a factor of them.
    """

    network: Network
    arrays: Arrays
    target: Arrays
    local: LocalTraining
    count: int
    input_shape: tuple[int, ...]
    classes: int
    low: Tensor
    high: Tensor
    statistics: Network | None = None
    seen: Tensor = field(default_factory=lambda: torch.empty(0))
    earlier: tuple[tuple[Arrays, Arrays], ...] = ()
    calibration: Thresholds | None = None
    told: tuple[Tensor, ...] = ()
    public: PublicImages | None = None
    orders: Tensor | None = None
    generative_model: nn.Module | None = None
    rounding: Mapping[str, float] = field(default_factory=dict)
    sparse: bool = False
    decay: float = 0.0

    @property
    def free_shape(self) -> tuple[int, ...]:
        """Shape of what is free of an image: its pixels, or what a generative model draws it from."""
        return self.input_shape if self.generative_model is None else latent_shape(self.generative_model)

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of what is free."""
        if self.generative_model is None:
            return self.low, self.high
        return torch.tensor(-LARGEST_LATENT), torch.tensor(LARGEST_LATENT)

    def images(self, free: Tensor) -> Tensor:
        """Return the normalised images ``[N, *input_shape]`` of what is free of them, ``[N, *free_shape]``."""
        if self.generative_model is None:
            return free
        pixels: Tensor = self.generative_model(free)
        return self.low + (self.high - self.low) * pixels

    @property
    def rounds(self) -> tuple[tuple[Arrays, Arrays], ...]:
        """Arrays and target of each round that the images have to explain, this one first."""
        return ((self.arrays, self.target), *self.earlier)

    @property
    def exact(self) -> bool:
        """Whether the target is what the client computed, all of it and to float32's digits."""
        return not self.rounding and not self.sparse

    @property
    def steps(self) -> int:
        """SGD steps of the round."""
        return self.local.epochs * batch_count(self.count, self.local.batch_size)

    def gradient(self, name: str) -> Tensor:
        """Return the target of an array less the weight decay in it: gradients alone, as far as they were sent."""
        return _less_decay(self.target[name], self.arrays[name], self.decay, unsent=self.sparse)

    def finite(self, name: str) -> Tensor:
        """Return :meth:`gradient` in float64 with zeros for what is no finite number: whoever sends that hides it."""
        return self.gradient(name).double().nan_to_num(0.0, 0.0, 0.0)


def _less_decay(seen: Tensor, sent: Tensor, decay: float, *, unsent: bool) -> Tensor:
    """Return an array's gradient without decay, which isn't in what wasn't sent, nor in a layer that isn't trained."""
    if not bool(seen.any()):
        return seen
    gradient = seen - decay * sent
    return torch.where(seen != 0, gradient, 0.0) if unsent else gradient


def of_equal_arrays(problems: Sequence[Problem]) -> list[list[int]]:
    """Return the numbers of problems that start from the same arrays, together."""
    groups: list[list[int]] = []
    for index, problem in enumerate(problems):
        for group in groups:
            arrays = problems[group[0]].arrays
            if all(torch.equal(array, arrays[name]) for name, array in problem.arrays.items()):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def latent_shape(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of what a generative model draws an image from."""
    shape: Sequence[int] = getattr(model, "latent_shape")  # noqa: B009  (a module's attributes are modules to mypy)
    return tuple(shape)


def problem_of(
    view: ServerView,
    *,
    norm_mode: Literal["train", "eval"] | None = None,
    guesses: Mapping[str, Tensor] | None = None,
    count: int | None = None,
) -> Problem:
    """Lay out the inversion of one update.

    Args:
        view: Of a plain or an S-run; of the latter the ANN's weights are recovered exactly.
        norm_mode: How batch normalisation is differentiated; by default as the client ran it.
        guesses: Arrays that the server didn't send, as biases in an S-run, or that stand in for those that it sent.
        count: Number of images, where the threat model doesn't tell; they are taken as one step's batch.

    Raises:
        ThreatModelError: If the number of images or, for several steps or weight decay, the learning rate is denied.
    """
    known = {name: array.detach().float() for name, array in {**view.exchange.sent, **(guesses or {})}.items()}
    mode = norm_mode or view.knowledge.norm_mode or "train"
    penalty, others = penalty_of(view, known, mode)
    arrays, local = {**known, **others}, replace(local_training(view, count), penalty=penalty)
    images = view.knowledge.images if count is None else count
    if images is None:
        raise ThreatModelError("needs images, which the threat model denies; use huang, which counts them")
    zeros, ones = torch.zeros(view.input_shape), torch.ones(view.input_shape)
    target = seen_gradient(view, local.learning_rate)
    return Problem(
        network=network_of(view.model, mode),
        arrays=arrays,
        target=target,
        local=local,
        count=images,
        input_shape=view.input_shape,
        classes=classes_of(view.model),
        low=view.inputs(zeros),
        high=view.inputs(ones),
        public=view.public,
        orders=view.orders if count is None and view.knowledge.steps != 1 else None,
        rounding={name: step / local.learning_rate for name, step in rounding(view).items()},
        sparse=sparse(view),
        decay=decay_of(view, target, local, local.epochs * batch_count(images, local.batch_size)),
    )


def local_training(view: ServerView, count: int | None = None) -> LocalTraining:
    """Read the client's local training from the threat model.

    One step needs no learning rate: its gradient is known up to a factor, which neither its direction nor the labels
    depend on (:func:`~snnfl.attacks.labels.scale_of`). ``momentum`` and clipping don't act on it, and where its length
    isn't known, weight decay counts as none: :func:`seen_gradient` has none, either.

    Args:
        view: Of the attacked round.
        count: If given, the round counts as one step on as many images.

    Raises:
        ThreatModelError: If what several steps depend on is denied.
    """
    known = view.knowledge
    if count is None and known.steps is None:
        raise ThreatModelError("needs images, batch_size and epochs, of which the threat model denies one")
    several = count is None and known.steps != 1
    if several and (known.learning_rate is None or known.momentum is None or known.weight_decay is None):
        raise ThreatModelError("several local steps need learning_rate and optimizer, of which one is denied")
    return LocalTraining(
        batch_size=count or known.batch_size or 1,
        epochs=1 if count else known.epochs or 1,
        learning_rate=known.learning_rate or 1.0,
        momentum=known.momentum or 0.0,
        weight_decay=(known.weight_decay or 0.0) if several or known.scaled else 0.0,
        clip_norm=known.clip_norm if several else None,
        pull=known.proximal_mu if several and not known.contrastive_mu and known.clip_norm is None else 0.0,
        # One step of several clients, each with its share of the images, is the step of one with all of them.
        clients=(known.clients or 1) if several or (count is None and normalised_layers(view.model)) else 1,
    )


def returned_arrays(view: ServerView, exchange: Exchange) -> Mapping[str, Tensor]:
    """Return the ANN's arrays after local training: as received, or recovered from a spiking update, without biases.

    ``W_A = W_S sigma/gamma`` with the update's own batch normalisation (SNFL section 4.2, "Server Aggregation"), which
    is exact. A channel that is too near zero to be divided keeps what was sent, as if it hadn't changed.
    """
    return view.format.decode(exchange.received, exchange.sent, biases=False)


def _returned_parameters(view: ServerView) -> Arrays:
    trained = {name for name, parameter in view.model.named_parameters() if parameter.requires_grad}
    return {name: array for name, array in returned_arrays(view, view.exchange).items() if name in trained}


def rounding(view: ServerView) -> Mapping[str, float]:
    """Return by how much neighbouring codes of an update differ, by array; empty for one that wasn't quantised.

    Of a run of ours the upload says it. The server of another app may have read the codes before anybody saw them; but
    what changed still are multiples of a step (:func:`~snnfl.attacks.compressed.steps_between`). So are those of a
    few images of two values; but these are of a rank that rounding doesn't leave.
    """
    if view.exchange.rounding or view.format.hides_biases:
        return view.exchange.rounding
    returned = _returned_parameters(view)
    steps = steps_between(view.exchange.sent, returned)
    told = sum(returned[name].numel() for name in steps)
    few = 2 * told <= sum(array.numel() for array in returned.values())
    return {} if few or _made_by_images(view, returned) else steps


def sparse(view: ServerView) -> bool:
    """Tell whether most of an update was left out (:func:`~snnfl.attacks.compressed.is_sparse`).

    A quantised one says itself what was sent: a code of zero, too. One that weights cannot be recovered from tells
    nothing.
    """
    if rounding(view) or not _tells_weights(view):
        return False
    sent, returned = view.exchange.sent, _returned_parameters(view)
    changes = {name: array - sent[name] for name, array in returned.items()}
    return is_sparse(sent, changes, lambda: _made_by_images(view, returned))


def _made_by_images(view: ServerView, returned: Mapping[str, Tensor]) -> bool | None:
    """Tell whether an update is of the ranks that the client's images make, or ``None`` where that isn't told."""
    known, sent, ranks = view.knowledge, view.exchange.sent, _ranks(view)
    changes = {name: array - sent[name] for name, array in returned.items()}
    if known.weight_decay == 0:
        decay = 0.0
    elif known.scaled and known.weight_decay is not None and known.steps and known.momentum is not None:
        local = local_training(view)
        decay = local.learning_rate * decayed(local, known.steps)
    else:
        decay = decay_in({name: -change for name, change in changes.items()}, sent, *ranks)
    # What is zero was left out, or isn't trained: there is no decay in it, either.
    gradients = {name: torch.where(change != 0, change + decay * sent[name], 0.0) for name, change in changes.items()}
    return made_by(sent, gradients, *ranks)


def _ranks(view: ServerView) -> tuple[dict[str, int], str | None]:
    """Return the largest rank of each linear layer's gradient, as far as it is told, and which layer makes logits.

    Of the latter errors sum to zero under cross-entropy, so that there is none where nobody said that.
    """
    known, rows = view.knowledge, rows_of(view.model, view.input_shape)
    logits = None if isinstance(view.model, SpikingModel) or not rows or not known.loss else last_linear(view.model)
    if known.images is None or known.epochs is None:
        return {}, logits
    return {name: known.images * known.epochs * each for name, each in rows.items()}, logits


def _tells_weights(view: ServerView) -> bool:
    """Tell whether the weights of an S-update can be recovered, which takes its statistics; others hold them."""
    return not view.format.hides_biases or view.knowledge.norm_statistics == "known"


def inexact(view: ServerView) -> str | None:
    """Say why an update is none that numbers can be solved for exactly, or return ``None``."""
    if rounding(view):
        return f"solves for exact numbers, and this is {_bits(view)}, rounded"
    return "solves for exact numbers, and most of the update was not sent" if sparse(view) else None


def _bits(view: ServerView) -> str:
    bits = view.knowledge.upload_bits
    return "a quantised upload" if bits is None else f"an upload in {bits} bits"


def said_of_upload(view: ServerView) -> str:
    """Say in words what of an update wasn't sent as it is; empty if everything was."""
    steps = rounding(view)
    if not _tells_weights(view) or not (steps or sparse(view)):
        return ""
    wanted = observed(view, 1.0)
    if steps:
        return f"{_bits(view)}, of whose norm about {100 * rounding_share(wanted, steps):.0f} % are rounding"
    entries, sent = (sum(int(of(array)) for array in wanted.values()) for of in (torch.numel, torch.count_nonzero))
    return f"a sparse upload of {100 * sent / entries:.1f} % of the entries, matched on these"


def seen_gradient(view: ServerView, learning_rate: float) -> Arrays:
    """Return :func:`observed`; of one step that is known up to a factor without the weight decay in it.

    Of a clipped gradient the decay was added behind the clipping; of a shortened update, or without the learning rate,
    the update tells it (:func:`~snnfl.attacks.decay.decay_in`). What is left is the gradient up to a factor.
    """
    seen, known = observed(view, learning_rate), view.knowledge
    if known.weight_decay == 0 or known.steps not in (None, 1) or (known.scaled and known.weight_decay is not None):
        return seen
    if known.clipped_gradient and known.learning_rate and known.weight_decay:
        decay = known.weight_decay
    else:
        decay = _found_decay(view, seen)
    unsent, sent = sparse(view), view.exchange.sent
    return {name: _less_decay(array, sent[name].float(), decay, unsent=unsent) for name, array in seen.items()}


def decay_of(view: ServerView, seen: Mapping[str, Tensor], local: LocalTraining, steps: int) -> float:
    """Return what of :func:`seen_gradient` is weight decay of what was sent, as a factor of it.

    The training tells it, but for an update of several steps that the client shortened by nobody knows how much, or of
    which FedProx's term, that draws decayed weights back, was clipped; then the update does.

    Args:
        view: Of the attacked round.
        seen: The update as a gradient.
        local: How the client trains.
        steps: SGD steps of the round.
    """
    known = view.knowledge
    clipped_pull = local.clip_norm is not None and known.proximal_mu > 0
    if local.weight_decay and steps > 1 and (clipped_pull or not known.scaled):
        return _found_decay(view, seen)
    return decayed(local, steps)


def _found_decay(view: ServerView, seen: Mapping[str, Tensor]) -> float:
    """Return the weight decay that an update tells of, if it was sent as it is."""
    if inexact(view) is not None or not _tells_weights(view):
        return 0.0
    return decay_in(seen, view.exchange.sent, *_ranks(view))


def observed(view: ServerView, learning_rate: float) -> Arrays:
    """Return the update of the attacked round as a gradient, of trained parameters alone (no running statistics)."""
    returned = _returned_parameters(view)
    return {
        name: array.detach().float() for name, array in difference(view.exchange.sent, returned, learning_rate).items()
    }
