"""The twelve claims of the paper, each a function from a `Lab` to a `Finding` (see paper.py)."""
