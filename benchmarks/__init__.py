"""How fast the client is, beside its peers: `python -m benchmarks`."""
