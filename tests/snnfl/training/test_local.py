import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import ModelConfig, TrainingConfig
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.training import TrainingDivergedError, learning_rate, train_locally
from snnfl.training.local import check_weights

SHAPE = (1, 8, 8)
CONFIG = TrainingConfig(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)


def build(name="lenet5", **options):
    config = ModelConfig(name=name, **options)
    return build_model(config, input_shape=SHAPE, classes=10, generator=generator(0, "weights"))


def draw(sizes, seed=0):
    source = generator(seed, "batches")
    return [
        (torch.randn(size, *SHAPE, generator=source), torch.randint(10, (size,), generator=source)) for size in sizes
    ]


def literal_sgd(model, epochs, *, rate, momentum, weight_decay):
    """Sutskever's momentum as PyTorch documents it, one tensor at a time."""
    velocity = {}
    model.train()
    for batches in epochs:
        for inputs, labels in batches:
            loss = functional.cross_entropy(model(inputs), labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
                    slope = gradient + weight_decay * weight
                    velocity[name] = slope if name not in velocity else momentum * velocity[name] + slope
                    weight -= rate * velocity[name]


def assert_same(one, other, **tolerance):
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(
            tensor, other.state_dict()[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_equals_a_literal_pytorch_loop_bit_for_bit(name):
    epochs = [draw([16, 16, 5], seed=epoch) for epoch in range(3)]
    ours, theirs = build(name), build(name)
    result = train_locally(ours, epochs, CONFIG, server_round=1)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)
    for batches in epochs:
        total = 0.0
        for inputs, labels in batches:
            loss = functional.cross_entropy(theirs(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
    assert_same(ours, theirs, rtol=0, atol=0)
    assert (result.samples, result.steps) == (37, 9)
    assert result.loss == pytest.approx(total / 37, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_the_equations(momentum):
    config = TrainingConfig(learning_rate=0.05, momentum=momentum, weight_decay=1e-2)
    epochs = [draw([8, 8]), draw([8, 3], seed=1)]
    ours, theirs = build(batch_norm=False).double(), build(batch_norm=False).double()
    doubled = [[(inputs.double(), labels) for inputs, labels in batches] for batches in epochs]
    train_locally(ours, doubled, config, server_round=1)
    literal_sgd(theirs, doubled, rate=0.05, momentum=momentum, weight_decay=1e-2)
    assert_same(ours, theirs, rtol=1e-9, atol=1e-12)


def test_momentum_starts_anew():
    batches = draw([8, 8])
    twice, once = build(), build()
    train_locally(twice, [batches], CONFIG, server_round=1)
    middle = copy.deepcopy(twice)
    train_locally(twice, [batches], CONFIG, server_round=2)
    train_locally(middle, [batches], CONFIG, server_round=2)
    assert_same(twice, middle, rtol=0, atol=0)
    train_locally(once, [batches, batches], CONFIG, server_round=1)
    assert not torch.equal(once.fc5.weight, twice.fc5.weight)


def test_batches_may_come_from_generators():
    model, same = build(), build()
    train_locally(model, (iter(draw([4, 4], seed)) for seed in range(2)), CONFIG, server_round=1)
    train_locally(same, [draw([4, 4], seed) for seed in range(2)], CONFIG, server_round=1)
    assert_same(model, same, rtol=0, atol=0)


def test_trains_in_training_mode_and_leaves_frozen_weights():
    model = build().eval()
    model.fc3.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    train_locally(model, [draw([8])], CONFIG, server_round=1)
    assert model.training
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before) - {"fc3.weight", "fc3.bias"}


def test_leaves_weights_that_the_loss_does_not_depend_on():
    model = build()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    train_locally(model, [draw([8])], CONFIG, server_round=1)
    assert torch.equal(model.unused, torch.ones(2))


def test_gradients_of_before_are_forgotten():
    model, fresh = build(), build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    train_locally(model, [draw([8])], CONFIG, server_round=1)
    train_locally(fresh, [draw([8])], CONFIG, server_round=1)
    assert_same(model, fresh, rtol=0, atol=0)


def test_the_objective_is_what_is_minimised():
    model = build()

    def quadratic(model: nn.Module, inputs, labels):
        return sum((parameter**2).sum() for parameter in model.parameters()) / 2

    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = TrainingConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    result = train_locally(model, [draw([4])], config, server_round=1, objective=quadratic)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old)
    assert result.loss == pytest.approx(sum(float((old**2).sum()) for old in before) / 2, rel=1e-5)


@given(st.floats(1e-6, 10), st.floats(1e-3, 1), st.lists(st.integers(1, 50), max_size=5).map(tuple), st.integers(1, 60))
def test_learning_rate_is_multiplied_at_each_milestone(rate, decay, milestones, server_round):
    config = TrainingConfig(learning_rate=rate, decay=decay, milestones=milestones)
    expected = rate
    for past in range(1, server_round + 1):
        for milestone in milestones:
            expected = expected * decay if past == milestone else expected
    assert learning_rate(config, server_round) == pytest.approx(expected)


def test_the_schedule_is_that_of_the_paper():
    rates = [learning_rate(TrainingConfig(), server_round) for server_round in range(1, 101)]
    assert rates == pytest.approx([0.1] * 60 + [0.01] * 35 + [0.001] * 5)


def test_the_round_decides_the_step():
    config = TrainingConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, milestones=(5,))
    moves = []
    for server_round in (4, 5):
        model = build()
        before = model.fc5.weight.detach().clone()
        train_locally(model, [draw([8])], config, server_round=server_round)
        moves.append(model.fc5.weight.detach() - before)
    torch.testing.assert_close(moves[0], 10 * moves[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_explained_in_one_line(value):
    good, bad = draw([4, 4]), draw([4, 4])
    bad[1][0][2] = value
    with pytest.raises(TrainingDivergedError) as error:
        train_locally(build(), [good, [*good, *bad]], CONFIG, server_round=61)
    assert str(error.value) == (
        "training diverged in round 61, epoch 2, step 4: the loss is nan at learning rate 0.005; "
        "lower training.learning_rate or training.momentum"
    )


def test_a_finite_loss_beyond_any_that_makes_sense_is_divergence():
    with pytest.raises(
        TrainingDivergedError, match=r"^training diverged in round 1, epoch 1, step 1: the loss is 3e\+15 "
    ):
        train_locally(build(), [draw([8])], CONFIG, server_round=1, objective=lambda m, x, y: m(x).sum() * 0 + 3e15)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e13, 1e30])
@pytest.mark.parametrize("name", ["fc5.weight", "fc3.bias"])
def test_weights_that_the_last_step_has_ruined_are_divergence(value, name):
    model = build()

    def objective(model, inputs, labels):
        with torch.no_grad():
            model.get_parameter(name).flatten()[0].fill_(value)
        return model(inputs).mul(0).nan_to_num().sum() + 0.5

    complaint = (
        rf"^training diverged in round 2: after its last step the norm of {name} is .* at learning rate .*; lower "
    )
    with pytest.raises(TrainingDivergedError, match=complaint):
        train_locally(model, [draw([8])], TrainingConfig(weight_decay=0.0), server_round=2, objective=objective)


def test_weights_in_half_precision_are_no_divergence_where_their_squares_have_no_room():
    model = nn.Linear(100, 10).half()
    nn.init.constant_(model.weight, 300.0)
    check_weights(model, list(model.parameters()), "round 1", 0.1)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="without an epoch; give at least one"):
        train_locally(build(), [], CONFIG, server_round=1)
    with pytest.raises(ValueError, match="round 3, epoch 2: no batch to train on"):
        train_locally(build(), [draw([4]), []], CONFIG, server_round=3)


def test_a_sample_that_micro_batches_leave_over_joins_the_last() -> None:
    """Batch normalisation cannot train on it alone."""
    sizes = []

    class Watched(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            sizes.append(len(inputs))
            return super().forward(inputs)

    model = Watched(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    batch = torch.randn(10, 3), torch.arange(10) % 2
    train_locally(model, [[batch]], TrainingConfig(micro_batch=3), server_round=1)
    assert sizes == [3, 3, 4]
