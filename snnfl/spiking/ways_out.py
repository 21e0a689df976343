"""Why a module or function has no spiking counterpart, and what to use instead."""

from __future__ import annotations


class ConversionError(ValueError):
    """A network that has no spiking counterpart here: names the layer and the way out."""


class Refusal(ValueError):
    """Why a call has no spiking counterpart and the way out, for whoever knows where the call stands."""


_SIGN = "use nn.ReLU: an integrate-and-fire rate is never negative"
_RATE = "use nn.ReLU: an integrate-and-fire rate is linear in its input"
_NORM = "use batch normalisation, which is affine after training"
_PRODUCT = "use convolutions and linear layers: a product of two activations is not linear in either's spikes"
_COMPARISON = "use nn.ReLU for what is above 0: a comparison is not linear in spikes"
_SOFTMAX = (
    "drop it, where it comes last: the largest logit is the largest probability; elsewhere it is a product of two "
    "activations, which is not linear in either's spikes"
)
_RECURRENT = "use convolutions and linear layers: its gates multiply activations, which is not linear in their spikes"
_QUANTISED = "convert the network before it is quantised, or with quantisation-aware layers (torch.ao.nn.qat)"

_WAYS_OUT = {
    **dict.fromkeys(("gelu", "silu", "elu", "celu", "selu", "mish", "hardswish", "leakyrelu", "prelu", "tanh"), _SIGN),
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softplus"), _RATE),
    **dict.fromkeys(("layernorm", "groupnorm", "instancenorm1d", "instancenorm2d", "instancenorm"), _NORM),
    **dict.fromkeys(
        ("multiheadattention", "scaleddotproductattention", "matmul", "bmm", "einsum"),
        _PRODUCT,
    ),
    **dict.fromkeys(
        (
            "transformer",
            *(f"transformer{part}{layer}" for part in ("encoder", "decoder") for layer in ("", "layer")),
        ),
        _PRODUCT,
    ),
    **dict.fromkeys(("softmax", "logsoftmax"), _SOFTMAX),
    **dict.fromkeys(("mul", "imul", "truediv", "div", "itruediv"), _PRODUCT),
    **dict.fromkeys(("gt", "lt", "ge", "le", "eq", "ne"), _COMPARISON),
    **dict.fromkeys(("lstm", "gru", "rnn"), _RECURRENT),
    **dict.fromkeys(("quantstub", "dequantstub", "quantizepertensor", "dequantize"), _QUANTISED),
}

_SUPPORTED = (
    "use what converts: convolution, also transposed, linear, batch norm, ReLU, ReLU6, pooling, up-sampling, padding, "
    "addition, concatenation, slicing, reshape, permute, dropout and identity"
)


def way_out(kind: str) -> str:
    """Say what to use instead of a type of module or a function."""
    return _WAYS_OUT.get(kind.lower().replace("_", ""), _SUPPORTED)
