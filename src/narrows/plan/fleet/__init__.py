"""Plan for fleets: thousands of layouts of a model over many devices, each in full."""
