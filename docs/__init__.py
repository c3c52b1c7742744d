"""The documentation. `python -m docs` builds it; nothing here is installed."""
