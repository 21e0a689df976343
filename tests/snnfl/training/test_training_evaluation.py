import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from snnfl.config import ModelConfig
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.training import accuracy, evaluate


def build():
    config = ModelConfig(name="lenet5")
    model = build_model(config, input_shape=(1, 8, 8), classes=10, generator=generator(0, "weights"))
    model(torch.randn(32, 1, 8, 8, generator=generator(1, "statistics")))  # running statistics that aren't the default
    return model


def draw(sizes):
    source = generator(2, "batches")
    return [
        (torch.randn(size, 1, 8, 8, generator=source), torch.randint(10, (size,), generator=source)) for size in sizes
    ]


def test_evaluate_against_scikit_learn():
    model, batches = build(), draw([7, 7, 2])
    result = evaluate(model, batches)
    with torch.no_grad():
        probabilities = copy.deepcopy(model).eval()(torch.cat([x for x, _ in batches])).double().softmax(1).numpy()
    labels = torch.cat([y for _, y in batches]).numpy()
    assert result.accuracy == accuracy_score(labels, probabilities.argmax(1))
    assert result.loss == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-5)
    assert result.images == 16


def test_evaluate_leaves_the_model_as_it_was():
    model = build().train()
    model.norm1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    evaluate(model, draw([4]))
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(1, 5), torch.zeros(1))])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_accuracy_counts_samples_not_batches(sizes, seed):
    source = generator(seed, "logits")
    batches = [(torch.randn(n, 3, generator=source), torch.randint(3, (n,), generator=source)) for n in sizes]
    rows = [(row.tolist(), int(label)) for x, y in batches for row, label in zip(x, y, strict=True)]
    hits = sum(row[label] == max(row) for row, label in rows)
    assert accuracy(lambda logits: logits, batches) == pytest.approx(hits / sum(sizes))


def test_no_gradient_is_recorded():
    seen = []

    def forward(inputs):
        logits = inputs @ torch.ones(64, 10, requires_grad=True)
        seen.append(logits.requires_grad)
        return logits

    accuracy(forward, [(x.flatten(1), y) for x, y in draw([3, 3])])
    assert seen == [False, False]


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))]])
def test_nothing_to_evaluate_is_an_error(batches):
    for measure in (evaluate, accuracy):
        with pytest.raises(ValueError, match="no sample to evaluate; give at least one batch"):
            measure(build().eval(), batches)
