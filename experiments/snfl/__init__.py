"""SNFL's tables and figures: for each a study of the paper's setting, a small one, and what came out (README.md)."""
