"""SNFL's tables and figures (:doc:`README.md`): a study of the paper's setting and of a small one for each, and what came out."""
