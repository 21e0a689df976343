"""Engines: the places where one Flower ServerApp and its ClientApps run.

:mod:`experiments.engines.in_process` calls the clients one after another in this process (the fast default on one
machine); :mod:`experiments.engines.ray` runs them in worker processes on Flower's own simulation runtime;
:mod:`experiments.engines.deployment` hands the app to a Flower SuperLink.
"""


class EngineError(RuntimeError):
    """An engine cannot run this here, or a run on it failed; the text is one line."""


class RefusedRunError(EngineError):
    """A ServerApp in another process refused the run for a mistake in what was asked; the text is its line."""
