"""Structured pruning of a student to a budget: gates on its units, the cost they are expected to leave, what stays.

After DPHuBERT (arXiv 2305.17651), which prunes convolution channels, attention heads and feed-forward units to a number
of parameters. Ours: taps of the position convolution, budgets in multiply-adds, LayerNorms that see only what is kept,
and a smaller student that computes what the gated one did.
"""
