"""``snnfl membership``: networks trained on random parts of a data set, and attacks that ask who was in."""
