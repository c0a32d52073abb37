"""Networks written in the literature's notation (`spec`), their layers, and the network that runs them over time."""
