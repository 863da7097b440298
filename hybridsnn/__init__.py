"""hybridsnn: spiking networks from trained networks, in stages that can be interrupted, repeated and verified."""

__version__ = "0.5.0"
