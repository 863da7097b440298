"""Evaluation of a network: accuracy at every time step, firing rates, early exit, each in one pass over images."""
