"""The auditor: what an honest-but-curious server sees, and what scoring alone may know.

It stands above attacks and detectors, which see :mod:`snnfl.threat` and must not reach
:mod:`snnfl.auditing.ground_truth`.
"""
