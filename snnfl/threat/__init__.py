"""What an attacker has: facts that a threat model grants or denies, and views of what a server holds."""

from snnfl.threat.knowledge import FACTS, Fact, Knowledge, ThreatModelError
from snnfl.threat.view import Exchange, PublicImages, ServerView, unrepeated

__all__ = ["FACTS", "Exchange", "Fact", "Knowledge", "PublicImages", "ServerView", "ThreatModelError", "unrepeated"]
