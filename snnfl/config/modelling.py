"""The network that clients train, and how they train it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snnfl.config.declaration import answers_nearest, option


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network that clients train."""

    name: str = option("lenet5", doc="lenet5, convnet, cnn, conv_mlp, resnet20, resnet20_snfl, vgg16, mlp or fcnet")
    conv_bias: bool = option(False, doc="whether convolutions followed by batch normalisation have a bias")
    batch_norm: bool = option(True, doc="batch normalisation behind the convolutions of lenet5 and convnet, and in mlp")
    group_norm: int = option(
        0,
        low=0,
        doc="groups of channels that lenet5 and convnet normalise, each sample by itself, with batch_norm=false; such "
        "networks don't convert, and of spiking ones the energy isn't counted",
    )
    weights: str | None = option(
        None, doc="file of a trained ANN to start from, as a plain run's final_ann.safetensors; null: drawn by run.seed"
    )
    projection_head: bool = option(False, doc="MOON's two linear layers, 256 wide at the end, before the output layer")
    pooling: Literal["average", "max"] = option("average", doc="of lenet5, convnet and vgg16")
    neuron: Literal["relu", "if", "lif", "rlif", "alif"] = option(
        "relu",
        doc="relu: an ordinary network; else one that is trained as a spiking network, of neurons that integrate and "
        "fire (if), leak (lif), receive their layer's spikes (rlif) or adapt their thresholds (alif)",
    )
    neurons: Literal["all", "head"] | None = option(
        None, doc="spiking: in place of all ReLUs, or of those behind linear layers; null: all"
    )
    time_steps: int | None = option(None, low=1, doc="spiking: T; null: 25, and of sequences their own length")
    beta: float | None = option(None, low=0.0, high=1.0, doc="lif, rlif, alif: potential left after a step; null: 0.95")
    learn_beta: bool | None = option(None, doc="lif, rlif, alif: whether each layer's beta is trained; null: no")
    threshold: float | None = option(None, above=0.0, doc="spiking: potential at which neurons fire; null: 1")
    learn_threshold: bool | None = option(None, doc="spiking: whether each layer's threshold is trained; null: no")
    reset: Literal["subtract", "zero"] | None = option(
        None, doc="spiking: what a spike takes from the potential: a threshold, or all; null: subtract"
    )
    reset_delay: bool | None = option(
        None,
        doc="spiking: reset with the next step and without a gradient (snnTorch), or at once and with one "
        "(spikingjelly); null: true",
    )
    surrogate: str | None = option(
        None,
        doc="spiking: fast_sigmoid, atan, sigmoid, spike_rate_escape, triangular, triangular_damped, "
        "triangular_snntorch or straight_through; null: fast_sigmoid",
    )
    surrogate_slope: float | None = option(None, above=0.0, doc="spiking: slope of the surrogate; null: its own")
    encoding: str | None = option(
        None, doc="spiking: direct, poisson, latency, or delta of sequences; null: direct, a constant current"
    )
    readout: Literal["rate", "final_potential", "mean_potential", "max_potential"] | None = option(
        None, doc="spiking: what of the output neurons is the logits; null: mean_potential"
    )
    output_fires: bool | None = option(
        None, doc="spiking: whether output neurons fire and reset though their potential is read; null: no"
    )
    threshold_norm: bool | None = option(
        None, doc="spiking: batch normalisation to the threshold (tdBN, Zheng et al. 2021); null: no"
    )


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Local training, by an optimiser whose state starts anew each round."""

    optimizer: Literal["sgd", "adam", "adamw"] = option(
        "sgd", doc="of local training; adam and adamw with beta 0.9 and 0.999, and a rate near 0.001"
    )
    epochs: int = option(5, low=1, doc="local epochs per round")
    batch_size: int = option(64, low=1, doc="local minibatch size")
    learning_rate: float = option(0.1, above=0.0, doc="before the schedule")
    momentum: float = option(0.9, low=0.0, high=1.0, doc="of sgd")
    weight_decay: float = option(1e-5, low=0.0, doc="L2 coefficient")
    milestones: tuple[int, ...] = option((61, 96), doc="rounds from which the rate is multiplied by `decay` (SNFL 5.2)")
    decay: float = option(0.1, above=0.0, high=1.0, doc="factor at each milestone")
    loss: Literal["readout", "per_step"] = option(
        "readout",
        doc="cross-entropy of what is read out; of spiking networks also the mean over the steps of each one's (TET)",
    )
    clip_norm: float | None = option(None, above=0.0, doc="bound of a batch's gradient, in L2 norm; null: none")
    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        doc="of what convolutions and linear layers of spiking networks multiply; bfloat16: 1.5 times as fast where "
        "the processor has it, spikes lose nothing, weights and gradients do",
    )
    activation: Literal["relu", "qcfs"] = option(
        "relu",
        doc="of ordinary networks: qcfs is quantised, clipped at a learned threshold and shifted, as few steps of "
        "neurons tell it (docs/few-steps.md)",
    )
    levels: int | None = option(None, low=1, high=256, doc="qcfs: steps L that activations are quantised to; null: 8")
    micro_batch: int | None = option(
        None, low=1, doc="samples whose gradient is computed at once, for less memory; null: the whole batch"
    )
