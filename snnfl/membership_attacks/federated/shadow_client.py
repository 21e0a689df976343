"""A white-box attack: a classifier of what rounds say of a sample, learned from a client that the server plays itself.

Nasr, Shokri & Houmansadr, "Comprehensive privacy analysis of deep learning", S&P 2019, train a network on a sample's
gradients, hidden layers, outputs and loss over rounds. Here the classifier is a logistic regression on numbers that
these are summed up to, for it learns from hundreds of samples, not ten thousands. What it learns from is stated: in
each round the server trains what it sent on public images as a client does, so that it knows members (these) and others
(other public images). Its client takes no part in the aggregation, which makes members a little harder to tell in it
than real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snnfl.attacks.local import simulate
from snnfl.attacks.networks import classes_of, network_of
from snnfl.attacks.penalties import penalty_of
from snnfl.attacks.problem import local_training, observed
from snnfl.membership_attacks.confidence import log_confidence
from snnfl.membership_attacks.federated.gradients import Gradients, compared, gradients_of, without_decay
from snnfl.membership_attacks.federated.networks import Answers, answers_of, end_of, logits, start_of
from snnfl.membership_attacks.federated.registry import register
from snnfl.membership_attacks.registry import MembershipError
from snnfl.threat import FederationView, ServerView, ThreatModelError
from snnfl.training import is_statistic

FEWEST = 20
"""Members, and others, that the classifier can learn from."""

MOST_STEPS = 2000
"""Local steps that the server repeats at most, whatever number of images a client claims."""

OUTPUTS = 3
"""Largest outputs of other classes that the classifier sees, beside the label's."""


@register(
    "shadow_client",
    source="Nasr et al., S&P 2019, section III, on summaries",
    needs=(
        *("architecture", "loss", "norm_statistics", "update_statistics", "images", "batch_size", "epochs"),
        *("learning_rate", "optimizer", "public_images", "individual"),
    ),
)
def shadow_client(view: FederationView, generator: torch.Generator) -> Tensor:
    """A classifier of losses, outputs and gradients over rounds, learned from a client that the server plays itself."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = _drawn(view.last, generator)
    learned = [_played(each.own, known) for each in view.rounds]
    shown = [_shown(*each, known.labels) for each in learned]
    asked = [_shown(*each, view.labels) for each in zip(answers_of(view), gradients_of(view), strict=True)]
    rows = torch.cat(shown, dim=1)
    if not bool(torch.isfinite(rows).all()):
        raise MembershipError("the client that the server plays itself diverges")
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    machine.fit(rows.numpy(), known.members.numpy())
    found = torch.cat(asked, dim=1)
    if not bool(torch.isfinite(found).all()):
        raise MembershipError("the client's networks overflow")
    return torch.from_numpy(machine.decision_function(found.numpy()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Public samples, of which the first half is what the server's own client trains on.

    Attributes:
        inputs: ``[2 M, *input_shape]``.
        labels: ``[2 M]``.
    """

    inputs: Tensor
    labels: Tensor

    @property
    def members(self) -> Tensor:
        """Whether each is trained on, bool ``[2 M]``."""
        return torch.arange(len(self.labels)) < len(self.labels) // 2


def _drawn(view: ServerView, generator: torch.Generator) -> Known:
    """Draw as many public members as the client has images, as far as there are, and as many others."""
    public = view.public
    if view.beyond:
        raise ThreatModelError(f"repeats plain SGD, and the clients train with {', '.join(view.beyond)}")
    if public is None or public.labels is None:
        raise ThreatModelError("learns from labelled public images, and there are none")
    count = min(view.knowledge.images or 0, len(public.labels) // 2)
    if count < FEWEST:
        raise ThreatModelError(f"{len(public.labels)} public images give {count} members; needs {FEWEST}")
    chosen = torch.randperm(len(public.labels), generator=generator)[: 2 * count]
    return Known(inputs=public.inputs[chosen], labels=public.labels[chosen])


def _played(view: ServerView, known: Known) -> tuple[Answers, Gradients]:
    """Train what the client got on the known members, as it trains, and look at that as at the client's own.

    Running statistics are the client's own, which its update tells: those of another client are much alike.
    """
    start, local = start_of(view), local_training(view)
    members = known.members
    steps = replace(view.knowledge, images=int(members.sum())).steps or 1
    if steps > MOST_STEPS:
        raise ThreatModelError(f"the client takes {steps} local steps, and at most {MOST_STEPS} are repeated")
    trained = tuple(name for name, parameter in view.model.named_parameters() if parameter.requires_grad)
    penalty, others = penalty_of(view, start, "train")
    targets = torch.nn.functional.one_hot(known.labels[members], classes_of(view.model)).float()
    with torch.no_grad():
        change = simulate(
            network_of(view.model, view.knowledge.norm_mode or "train"), {**start, **others}, trained,
            known.inputs[members], targets, replace(local, penalty=penalty),
        )  # fmt: skip
    moved = {name: start[name] - local.learning_rate * array for name, array in change.items()}
    statistics = {name: array for name, array in end_of(view).items() if is_statistic(name)}
    evaluated, seen = network_of(view.model, "eval"), observed(view, local.learning_rate)
    told = without_decay({name: change[name] for name in seen}, start, local, steps)
    answers = Answers(
        before=logits(evaluated, start, known.inputs),
        after=logits(evaluated, {**start, **statistics, **moved}, known.inputs),
        others=(),
    )
    return answers, compared(evaluated, start, [told], known.inputs, known.labels)


def _shown(answers: Answers, signals: Gradients, labels: Tensor) -> Tensor:
    """Return what the classifier sees of a round: losses, outputs, the gradient's length and direction, ``[N, F]``."""
    before, after = (log_confidence(each, labels) for each in (answers.before, answers.after))
    outputs = answers.after.double().log_softmax(1)
    others = outputs.scatter(1, labels[:, None], -torch.inf).topk(min(OUTPUTS, outputs.shape[1] - 1), dim=1).values
    length = signals.squares.clamp_min(1e-30).log()
    columns = [before, after, after - before, length, signals.cosines[0]]
    return torch.cat([torch.stack(columns, dim=1), others], dim=1)
