"""Engines: the places where one Flower ServerApp and its ClientApps run.

:mod:`experiments.engines.in_process` calls the clients one after another in this process (the fast default on one
machine); :mod:`experiments.engines.ray` runs them in worker processes on Flower's own simulation runtime.
"""
