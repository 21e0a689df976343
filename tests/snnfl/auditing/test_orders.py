from __future__ import annotations

from typing import Any

import pytest
import torch

from snnfl.auditing.orders import flags_of, unrepeated_orders
from snnfl.auditing.recording import Received
from snnfl.threat import Exchange, Knowledge

SENT = {"w": torch.zeros(3, 4), "b": torch.zeros(4)}
BACK = {"w": torch.full((3, 4), 0.5), "b": torch.full((4,), -0.5)}  # 2 from what was sent


def received(**orders: Any) -> Received:
    exchange = Exchange(server_round=1, sent=SENT, received=BACK)
    about = {"config": {name.replace("_", "-"): value for name, value in orders.items() if name != "clipping_norm"}}
    about["config"] |= {"clipping_norm": orders["clipping_norm"]} if "clipping_norm" in orders else {}
    return Received(server_round=1, partition=0, exchange=exchange, metrics={}, about=about)


def test_the_messages_say_what_clients_minimise() -> None:
    moon = flags_of(received(contrastive_mu=5.0, temperature=0.5, server_round=2), whole=True)
    assert moon == {"contrastive_mu": 5.0, "temperature": 0.5}
    assert flags_of(received(proximal_mu=0.1), whole=True) == {"proximal_mu": 0.1}
    assert Knowledge(**moon).contrastive_mu == 5.0


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), "a lot", True, None])
def test_what_is_no_weight_says_nothing(value: object) -> None:
    assert flags_of(received(proximal_mu=value), whole=True) == {}


def test_an_update_shorter_than_the_bound_was_not_clipped() -> None:
    assert flags_of(received(clipping_norm=3.0), whole=True) == {"clipped": False}
    assert flags_of(received(clipping_norm=2.0), whole=True) == {"clipped": True}
    assert flags_of(received(clipping_norm=3.0), whole=False) == {"clipped": True}


def test_what_no_attack_repeats_is_named() -> None:
    assert unrepeated_orders(received(logit_calibration=1.0)) == ("logit-calibration=1.0",)
    assert unrepeated_orders(received(objective="mine")) == ("objective=mine",)
    assert unrepeated_orders(received(proximal_mu=1.0)) == ()


@pytest.mark.parametrize("about", [{}, {"config": None}, {"config": "moon"}, {"config": [1]}])
def test_a_recording_that_tells_nothing_asks_nothing(about: dict[str, Any]) -> None:
    exchange = Exchange(server_round=1, sent=SENT, received=BACK)
    silent = Received(server_round=1, partition=0, exchange=exchange, metrics={}, about=about)
    assert flags_of(silent, whole=True) == {}
    assert unrepeated_orders(silent) == ()
