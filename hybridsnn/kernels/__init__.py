"""What costs time: the scan of neurons over time, and what synapses make of spikes. Definitions, and fast paths."""
