"""The auditor: what an honest-but-curious server sees, and what scoring alone may know.

Nothing is imported here: attacks import :mod:`snnfl.audit.view`, and must not reach :mod:`snnfl.audit.ground_truth`.
"""
