"""What an attacker has: facts that a threat model grants or denies, and views of what a server holds."""

from snnfl.threat.federation import FederationView, RoundView, over_rounds
from snnfl.threat.knowledge import FACTS, Fact, Knowledge, ThreatModelError, hidden_by_sums
from snnfl.threat.membership import (
    MEMBERSHIP_FACTS,
    MembershipKnowledge,
    MembershipView,
    Population,
    Shadow,
    Signals,
)
from snnfl.threat.model import MODEL_FACTS, Ask, ModelKnowledge, ModelView
from snnfl.threat.view import Exchange, PublicImages, ServerView, unrepeated

__all__ = [
    "FACTS",
    "MEMBERSHIP_FACTS",
    "MODEL_FACTS",
    "Ask",
    "Exchange",
    "Fact",
    "FederationView",
    "Knowledge",
    "MembershipKnowledge",
    "MembershipView",
    "ModelKnowledge",
    "ModelView",
    "Population",
    "PublicImages",
    "RoundView",
    "ServerView",
    "Shadow",
    "Signals",
    "ThreatModelError",
    "hidden_by_sums",
    "over_rounds",
    "unrepeated",
]
