"""Any network of the registry as a spiking one: its layers see time steps, and neurons that fire replace its ReLUs.

Values between layers are ``[T, N, ...]``; one that is constant in time is ``[1, N, ...]``, so that what comes before
the first neurons is computed once. A spiking model holds parameters and nothing else: potentials live in one call of
``forward``.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from snnfl.config import ConfigError, ModelConfig
from snnfl.models.blocks import BasicBlock
from snnfl.models.initialisation import initialise
from snnfl.models.over_time import fold_time
from snnfl.models.spiking_layers import FEEDS_NEURONS, STEPS, SURROGATE, THRESHOLD, Readout, SpikingNeurons
from snnfl.neurons import ENCODINGS, Unrolled, surrogate_spike


class SpikingModel(nn.Module):
    """A network whose neurons fire, made of an ordinary one's layers: same modules, same names.

    Maps samples ``[N, *input_shape]``, or their course in time ``[T, N, *input_shape]``, to ``[N, classes]``. Samples
    that are sequences themselves (events, sound, series) are ``[N, T, *step_shape]``, as data sets hold them.

    Args:
        body: The layers, which take a time axis (:func:`~snnfl.models.over_time.fold_time`).
        config: Encoding and readout.
        input_shape: Of one sample.
        sequence: Whether a sample's first axis is time.
    """

    def __init__(self, body: nn.Module, config: ModelConfig, *, input_shape: tuple[int, ...], sequence: bool) -> None:
        super().__init__()
        self.encoding = config.encoding or "direct"
        self.input_shape, self.sequence = input_shape, sequence
        self.steps = input_shape[0] if sequence else config.time_steps or STEPS
        self.generator: torch.Generator | None = None
        self.per_step = False
        for name, module in body.named_children():
            if name in (*dir(self), "readout"):
                raise ConfigError(
                    f"model.name={config.name}: a spiking network has its own {name}; call that layer otherwise"
                )
            self.add_module(name, module)
        self.readout = Readout(config, self.steps)
        object.__setattr__(self, "_body", body)  # its modules are registered under their own names

    @property
    def body(self) -> nn.Module:
        """The layers without encoding and readout: currents of output neurons over time."""
        body: nn.Module = self.__dict__["_body"]
        if body.training != self.training:  # it is none of the model's modules, whose mode is set
            body.training = self.training
        return body

    def encode(self, inputs: Tensor) -> Tensor:
        """Return what flows into the first layer, ``[T or 1, N, ...]``.

        Random encodings draw from :attr:`generator`, or the same draws at every call if there is none.

        Raises:
            ValueError: For inputs of another number of axes.
        """
        axes = inputs.dim() - len(self.input_shape)
        if self.sequence and axes == 1:
            inputs = inputs.movedim(1, 0)
        elif axes == 1:
            inputs = inputs.unsqueeze(0)
        elif self.sequence or axes != 2:
            expected = f"[N, {', '.join(map(str, self.input_shape))}]"
            raise ValueError(f"inputs of shape {list(inputs.shape)}: expected {expected}")
        encoding = ENCODINGS.find(self.encoding)
        generator = self.generator
        if encoding.random and generator is None:
            generator = torch.Generator(inputs.device).manual_seed(0)
        return encoding.encode(inputs, self.steps, generator)

    def currents(self, inputs: Tensor) -> Tensor:
        """Return the currents of the output neurons, ``[T or 1, N, classes]``."""
        currents: Tensor = self.body(self.encode(inputs))
        return currents

    def over_time(self, inputs: Tensor) -> Tensor:
        """Map samples to each step's value of the output neurons, ``[T, N, classes]``."""
        return self.readout.over_time(self.currents(inputs))

    @torch.no_grad()
    def record(self, inputs: Tensor) -> dict[str, Unrolled]:
        """Return spikes and potentials of each layer of neurons, those of the readout aside.

        Args:
            inputs: As :meth:`forward` takes them.

        Returns:
            By layer, ``[T, N, C, *space]`` each: before a pooling that follows, potentials before their reset.
        """
        found: dict[str, Unrolled] = {}

        def keep(name: str, neurons: SpikingNeurons, given: tuple[Tensor], _: Tensor) -> None:
            found[name] = neurons.over_time(given[0])

        hooks = [neurons.register_forward_hook(partial(keep, name)) for name, neurons in self.neurons.items()]
        try:
            self.currents(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Map samples to what is read out of the output neurons, ``[N, classes]``."""
        logits: Tensor = self.readout(self.currents(inputs))
        return logits

    def parts(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return three functions that make up the model, for whoever looks at what its output layer receives.

        Returns:
            From encoded samples to what the output layer receives, ``[T or 1, N, ...]``; from that to the mean over
            time, of spikes their rates, ``[N, ...]``; and from it to the currents of the output neurons.

        Raises:
            TypeError: If the layers are no ``nn.Sequential``, whose last one is the output layer.
        """
        body = self.body
        if not isinstance(body, nn.Sequential):
            raise TypeError(f"{type(body).__name__}: no nn.Sequential, so nothing says which layer is the output layer")
        return body[:-1], partial(torch.mean, dim=0), body[-1]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers of neurons, first layer first, those that are read out included."""
        return tuple(name for name, module in self.named_modules() if isinstance(module, SpikingNeurons))

    @property
    def neurons(self) -> dict[str, SpikingNeurons]:
        """The layers of neurons by name, those of the readout aside."""
        named = self.named_modules()
        return {name: it for name, it in named if isinstance(it, SpikingNeurons) and not name.startswith("readout.")}


def with_default_surrogate(model: nn.Module) -> nn.Module:
    """Return a model that doesn't tell which surrogate gradient it is trained with: a copy, if it is a spiking one."""
    if not isinstance(model, SpikingModel):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, SpikingNeurons):
            module.spike = surrogate_spike(SURROGATE)
    return model


@contextmanager
def drawing(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Let a model's random encoding draw from a generator, for a while."""
    if not isinstance(model, SpikingModel):
        yield
        return
    before, model.generator = model.generator, generator
    try:
        yield
    finally:
        model.generator = before


def spiking_model(
    model: nn.Module,
    config: ModelConfig,
    *,
    input_shape: tuple[int, ...],
    sequence: bool,
    generator: torch.Generator,
) -> SpikingModel:
    """Turn an ordinary network into a spiking one; its layers become those of the result.

    Args:
        model: Its ``nn.ReLU`` become neurons.
        config: Which neurons, and where: ``all``, or in the ``head``, behind linear layers.
        input_shape: Of one sample.
        sequence: Whether a sample's first axis is time.
        generator: Draws recurrent weights.

    Raises:
        ConfigError: If no ReLU is where neurons should be, an option has no effect, or the encoding doesn't fit.
    """
    kind = "sequences" if sequence else "samples"
    encoding = config.encoding or "direct"
    if kind not in ENCODINGS.find(encoding).takes:
        takes = " and ".join(ENCODINGS.find(encoding).takes)
        raise ConfigError(f"model.encoding={encoding}: it encodes {takes}, and those of data.source are {kind}")
    if sequence and config.time_steps is not None:
        raise ConfigError(
            f"model.time_steps={config.time_steps}: the samples of data.source are sequences of {input_shape[0]} "
            "steps, which count; leave it out (data.time_bins sets those of events)"
        )
    steps = input_shape[0] if sequence else config.time_steps or STEPS
    if own := [name for name, _ in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False))]:
        raise ConfigError(f"model.name={config.name}: {own[0]} is in no layer, and spiking networks are made of layers")
    fold_time(model)
    _replace_relus(model, config, steps, generator)
    if config.threshold_norm:
        _normalise_to_threshold(model, config)
    _pool_at_once(model)
    _normalise_at_once(model)
    return SpikingModel(model, config, input_shape=input_shape, sequence=sequence)


def _replace_relus(model: nn.Module, config: ModelConfig, steps: int, generator: torch.Generator) -> None:
    """Put neurons in the place of ReLUs, in place: in that of each name, should several mean the same module."""
    replaced, features = list[SpikingNeurons](), None
    for path, child in list(model.named_modules(remove_duplicate=False)):
        if isinstance(child, nn.Linear):
            features = child.out_features
        elif isinstance(child, nn.Conv2d):
            features = None
        elif isinstance(child, nn.ReLU) and (config.neurons != "head" or features is not None):
            received = features if config.neuron == "rlif" else None
            replaced.append(SpikingNeurons(config, steps=steps, features=received))
            initialise(replaced[-1], generator)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, replaced[-1])
    if not replaced:
        where = " behind a linear layer" if config.neurons == "head" else ""
        raise ConfigError(
            f"model.neuron={config.neuron}: model.name={config.name} has no nn.ReLU{where} that neurons could replace; "
            + ("set model.neurons=all" if config.neurons == "head" else "build it of nn.ReLU modules")
        )
    if config.neuron == "rlif" and all(neurons.recurrent is None for neurons in replaced):
        raise ConfigError(f"model.neuron=rlif: model.name={config.name} has none behind a linear layer; take lif")


@torch.no_grad()
def _normalise_to_threshold(model: nn.Module, config: ModelConfig) -> None:
    """Let batch normalisation begin with the neurons' threshold as standard deviation, in place.

    ``gamma = alpha V_th`` with ``alpha = 1``, and ``1 / sqrt(2)`` where two normalised values are added: tdBN (Zheng et
    al., "Going deeper with directly-trained larger spiking neural networks", AAAI 2021, eq. 7 and section 4.3). The
    paper writes ``lambda alpha V_th`` with a trained ``lambda``; here gamma is trained, which starts at the same place.
    """
    added = {id(norm) for block in model.modules() if isinstance(block, BasicBlock) for norm in block.norms_added}
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms:
        raise ConfigError(
            f"model.threshold_norm=True: model.name={config.name} has no batch normalisation; leave it out"
        )
    threshold = THRESHOLD if config.threshold is None else config.threshold
    for norm in norms:
        norm.weight.fill_(threshold / math.sqrt(2) if id(norm) in added else threshold)


def _pool_at_once(model: nn.Module) -> None:
    """Let neurons average their own spikes where an average pooling follows, in place: half the memory traffic."""
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        layers = list(sequence._modules.items())  # all names, though two may mean the same module
        for (_, neurons), (name, pool) in itertools.pairwise(layers):
            if isinstance(neurons, SpikingNeurons) and isinstance(pool, nn.AvgPool2d):
                side = pool.kernel_size
                if (
                    isinstance(side, int)
                    and pool.stride == side
                    and pool.padding == 0
                    and not (pool.ceil_mode or pool.divisor_override)
                ):
                    neurons.pool = side
                    setattr(sequence, name, nn.Identity())


def _normalise_at_once(model: nn.Module) -> None:
    """Tell batch normalisations that neurons alone read so, in place: training may normalise in the neurons' scan."""
    found = list[nn.Module]()
    for module in model.modules():
        if type(module) is nn.Sequential:
            found += [norm for norm, after in itertools.pairwise(module) if isinstance(after, SpikingNeurons)]
        elif type(module) is BasicBlock:
            pairs = ((module.norm1, module.relu1), (module.norm2, module.relu2))
            found += [norm for norm, after in pairs if isinstance(after, SpikingNeurons)]
    names = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    for norm in found:
        if isinstance(norm, nn.BatchNorm2d) and names.count(id(norm)) == 1:
            setattr(norm, FEEDS_NEURONS, True)
