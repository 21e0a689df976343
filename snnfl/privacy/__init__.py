"""Differential privacy as mathematics: what is clipped, which noise is added, what it proves, and what refutes it."""
