"""hybridsnn: spiking networks from trained networks, in stages that can be stopped, repeated and trusted."""

__version__ = "0.4.0"
