"""Latency tables: how long a network's layers take at any of their widths, measured in the engine that will serve."""
