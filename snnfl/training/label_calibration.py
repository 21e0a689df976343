"""FedLEC's local objective, for clients that have few images of some labels and none of others."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnfl.models import SpikingModel
from snnfl.training.objectives import Objective

SMALLEST_PRIOR = 1e-9
"""Added to the share of each label, so that a missing one has a logarithm: -20.7."""


def label_calibrated(
    model: nn.Module, counts: Tensor, *, calibration: float, spread: float, distillation: float
) -> Objective:
    """Return FedLEC's objective about the weights that a model has now, the received ones.

    With logits ``z``, the client's label shares ``pi``, ``C`` labels and a batch of ``N`` it is the sum of

    - ``cross-entropy(z + calibration log pi, y)``: logits of rare and missing labels count less, so that training
      doesn't push them down;
    - ``spread sum_c pi_c log(1/N sum_b exp(s_bc))`` with ``s_bc = z_bc - log pi_c - log C``, and 0 where ``c`` is the
      sample's own label: logits of labels that a sample doesn't have are held down, those of rare ones more. A missing
      label weighs nothing here;
    - ``distillation KL(softmax z_received || softmax z)`` over the missing labels alone, mean over the batch: what the
      received model knows of them is kept. The received model is frozen and in evaluation mode; of spiking models both
      see the same encoded samples.

    Source: Yu et al., "FedLEC: Effective federated learning algorithm with spiking neural networks under label skews"
    (arXiv 2412.17305v1; IJCAI 2025 as "Exploiting label skewness for spiking neural networks in federated learning"),
    after the authors' code (github.com/AmazingDD/FedLEC): with ``calibration=1`` that of January 2025, with
    ``calibration=0`` that since April 2025.

    Args:
        model: Holds the received weights, which are copied.
        counts: The client's training samples of each label, ``[classes]``.
        calibration: Weight of ``log pi`` in the logits.
        spread: Weight of the second term, at least 0.
        distillation: Weight of the third, at least 0.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    prior = (counts / counts.sum()).to(next(model.parameters()))
    log_prior, missing = torch.log(prior + SMALLEST_PRIOR), torch.nonzero(prior == 0).flatten()

    def objective(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if isinstance(model, SpikingModel):  # both see the same encoded samples
            inputs = model.encode(inputs)
        logits = _logits(model, inputs)
        loss = functional.cross_entropy(logits + calibration * log_prior, labels)
        foreign = functional.one_hot(labels, len(prior)) == 0
        shifted = (logits - log_prior - math.log(len(prior))) * foreign
        loss = loss + spread * (prior * (torch.logsumexp(shifted, dim=0) - math.log(len(labels)))).sum()
        if len(missing):
            with torch.no_grad():
                known = functional.softmax(_logits(teacher, inputs)[:, missing], dim=1)
            ours = functional.log_softmax(logits[:, missing], dim=1)
            loss = loss + distillation * functional.kl_div(ours, known, reduction="batchmean")
        return loss

    return objective


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a model's logits of its samples; of a spiking model they are encoded already."""
    logits: Tensor = model.readout(model.body(inputs)) if isinstance(model, SpikingModel) else model(inputs)
    return logits
