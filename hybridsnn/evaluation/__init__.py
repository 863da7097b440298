"""What a network achieves: accuracy at every step, spikes, early exit; each measured in one pass over images."""
