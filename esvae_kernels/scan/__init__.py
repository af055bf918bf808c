"""Any neuron over all time steps: one generic op per direction."""
