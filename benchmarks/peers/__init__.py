"""Other ways to read the same stream; each prints what `benchmarks.client` prints."""
