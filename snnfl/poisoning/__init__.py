"""What a poisoning client does to its data and to its update. Nothing of the server's may import it but scoring."""

from snnfl.poisoning import published  # noqa: F401  (it registers)
from snnfl.poisoning.data import poisoned, triggered_test
from snnfl.poisoning.event_triggers import moving_event_trigger, static_event_trigger, temporal_event_trigger
from snnfl.poisoning.registry import POISONINGS, Attacker, Poisoning, names, register
from snnfl.poisoning.roles import attackers, attacks_in, check_poisoning, trigger
from snnfl.poisoning.triggers import Trigger, TriggerError, blended_trigger, distributed_trigger, square_trigger
from snnfl.poisoning.updates import forged, scaled, scaled_spiking

__all__ = [
    "POISONINGS",
    "Attacker",
    "Poisoning",
    "Trigger",
    "TriggerError",
    "attackers",
    "attacks_in",
    "blended_trigger",
    "check_poisoning",
    "distributed_trigger",
    "forged",
    "moving_event_trigger",
    "names",
    "poisoned",
    "register",
    "scaled",
    "scaled_spiking",
    "square_trigger",
    "static_event_trigger",
    "temporal_event_trigger",
    "trigger",
    "triggered_test",
]
