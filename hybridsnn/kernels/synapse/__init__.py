"""What synapses make of spikes: dense, Winograd and event-driven ways, and what chooses among them."""
