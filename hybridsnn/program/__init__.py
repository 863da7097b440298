"""A spiking network as a program: its body compiled into nodes with roles, and the one loop that runs it over time."""
