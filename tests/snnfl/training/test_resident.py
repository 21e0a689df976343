import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnfl.config import ModelConfig
from snnfl.models import build_model, names
from snnfl.rng import generator
from snnfl.training import exchangeable, load_arrays, private_biases


def build(name="lenet5", seed=0, **options):
    config = ModelConfig(name=name, **options)
    return build_model(config, input_shape=(3, 32, 32), classes=10, generator=generator(seed, "weights"))


@pytest.mark.parametrize("name", names())
def test_what_travels_is_the_state_without_the_counters(name):
    model = build(name)
    arrays = exchangeable(model)
    state = model.state_dict()
    assert list(arrays) == [key for key in state if "num_batches_tracked" not in key]
    assert sum(tensor.numel() for tensor in arrays.values()) == sum(p.numel() for p in model.parameters()) + sum(
        2 * module.num_features for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    )


def test_what_travels_are_views():
    model = build()
    arrays = exchangeable(model)
    assert not any(array.requires_grad for array in arrays.values())
    arrays["conv1.weight"][0, 0, 0, 0] = 42
    with torch.no_grad():
        model.fc5.bias[3] = 7
    model.norm1.running_mean[1] = 5
    assert model.conv1.weight[0, 0, 0, 0] == 42
    assert arrays["fc5.bias"][3] == 7
    assert arrays["norm1.running_mean"][1] == 5


def test_constant_buffers_do_not_travel_and_tied_weights_do_under_each_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("scale", torch.ones(1))
    assert list(exchangeable(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("name", names())
def test_private_biases_are_those_of_convolutions_and_linear_layers(name, conv_bias):
    model = build(name, conv_bias=conv_bias)
    expected = {id(m.bias) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None}
    parameters = dict(model.named_parameters())
    private = private_biases(model)
    assert {id(parameters[key]) for key in private} == expected
    assert len(private) == len(expected) > 0


def test_a_layer_that_nobody_thought_of_keeps_its_bias_private():
    model = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2), nn.Bilinear(2, 2, 2))
    assert private_biases(model) == ("0.bias", "2.bias")
    assert private_biases(nn.Linear(2, 2)) == ("bias",)


@pytest.mark.parametrize("name", names())
def test_loading_makes_models_equal_in_place(name):
    model, other = build(name), build(name, seed=1)
    memory = {key: tensor.data_ptr() for key, tensor in model.state_dict().items()}
    load_arrays(model, exchangeable(other))
    assert {key: tensor.data_ptr() for key, tensor in model.state_dict().items()} == memory
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.parameters(), other.parameters(), strict=True))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_subset_may_be_named(data):
    model, other = build("lenet5"), build("lenet5", seed=1)
    before = {key: array.clone() for key, array in exchangeable(model).items()}
    chosen = data.draw(st.sets(st.sampled_from(list(before))))
    load_arrays(model, {key: exchangeable(other)[key] for key in chosen}, names=chosen)
    for key, array in exchangeable(model).items():
        assert torch.equal(array, exchangeable(other)[key] if key in chosen else before[key])


def test_loading_without_the_private_biases_keeps_them():
    model, other = build(), build(seed=1)
    private = private_biases(model)
    biases = {key: exchangeable(model)[key].clone() for key in private}
    public = {key: array for key, array in exchangeable(other).items() if key not in private}
    load_arrays(model, public, names=public.keys())
    assert all(torch.equal(exchangeable(model)[key], bias) for key, bias in biases.items())
    assert torch.equal(model.fc5.weight, other.fc5.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.pop("norm2.bias"),
            "array 'norm2.bias' is missing from the 15 received; is the sender's",
        ),
        (lambda arrays: arrays.update(extra=torch.zeros(2, 3)), r"'extra' of shape \[2, 3\] is unexpected; is the"),
        (
            lambda arrays: arrays.update({"fc5.weight": torch.zeros(10, 85)}),
            r"'fc5.weight' has shape \[10, 85\], expected \[10, 84\]; is the sender's model",
        ),
        (lambda arrays: arrays.update({"norm1.num_batches_tracked": torch.tensor(1)}), "'norm1.num_batches_tracked'"),
    ],
)
def test_a_wrong_array_is_named_and_nothing_is_loaded(change, message):
    model, arrays = build(), dict(exchangeable(build(seed=1)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    change(arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_arrays(model, arrays)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_names_the_model_does_not_have_are_errors():
    arrays = {"nothing": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"'nothing' of shape .* is unexpected"):
        load_arrays(build(), arrays, names=arrays.keys())
