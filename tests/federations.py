"""A small federation on real digits, round after round, as its server sees it and as only scoring may know it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import torch
from victims import SCALE, attacked, digits, small_mlp
from victims import spiking_victim as native_victim

from snnfl.auditing.setting import Setting
from snnfl.auditing.victims import Victim
from snnfl.config import ConversionConfig, DataConfig, TrainingConfig
from snnfl.data import load
from snnfl.threat import PublicImages

CLIENTS, IMAGES = 4, 24
TRAINING = TrainingConfig(epochs=25, batch_size=8, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
"""Few images, many epochs: what a client knows by heart."""


def unseen(count: int, start: int = 700) -> PublicImages:
    """Return digits that no client here has."""
    pixels, labels, mean, std = digits(count, start)
    return PublicImages(inputs=(pixels - mean) / std, labels=labels)


@cache
def federation(kind: str = "plain", rounds: int = 2) -> tuple[Victim, ...]:
    """Train clients for some rounds of FedAvg, and return them in the order of rounds."""
    model, earlier, found = small_mlp(64), dict[int, tuple[object, ...]](), list[Victim]()
    conversion = ConversionConfig(steps=4, calibration="none") if kind == "converted" else None
    for server_round in range(1, rounds + 1):
        of_round = []
        for client in range(CLIENTS):
            if kind == "native":
                pixels, labels, mean, std = digits(IMAGES, IMAGES * client)
                made = native_victim((pixels - mean) / std, labels, sequence=False, training=TRAINING, time_steps=2)
                view = replace(made.view, mean=mean, std=std)
                truth = replace(made.truth, images=pixels)
            else:
                made = attacked(
                    model, start=IMAGES * client, images=IMAGES, training=TRAINING, conversion=conversion,
                    calibrating=None,
                )  # fmt: skip
                view, truth = made.view, made.truth
            exchange = replace(view.exchange, server_round=server_round)
            before = earlier.get(client, ())
            view = replace(view, exchange=exchange, earlier=before, public=unseen(400))
            earlier[client] = (*before, exchange)
            of_round.append(Victim(server_round=server_round, partition=client, view=view, truth=truth))
        found += of_round
        model = averaged(model, of_round)
    return tuple(found)


def averaged(model: torch.nn.Module, victims: list[Victim]) -> torch.nn.Module:
    """Average what clients return, as far as the server has it; FedAvg of clients of one size."""
    told = [v.view.format.decode(v.view.exchange.received, v.view.exchange.sent, biases=False) for v in victims]
    mean = {name: torch.stack([each[name] for each in told]).mean(0) for name in told[0]}
    model = copy.deepcopy(model)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in mean.items():
            if name in own and own[name].shape == array.shape:
                own[name].copy_(array)
    return model


def setting_of_digits(victims: tuple[Victim, ...]) -> Setting:
    """Return what an audit must know of :func:`federation`."""
    data, view = load(DataConfig(source="digits")), victims[0].view
    assert float(data.scale) == SCALE

    def unread(*_: object) -> object:
        raise AssertionError("there is no recording")

    return Setting(
        name="digits", algorithm="FedAvg", seed=0, dataset=data, model=view.model, format=view.format,
        initial_state={}, knowledge=unread, beyond=unread, recorded=unread, told=unread,
    )  # fmt: skip
