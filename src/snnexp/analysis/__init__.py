"""Numbers about a network's activity: dead, silent and saturated neurons, firing rates, synaptic operations, plots."""
