"""The cost of routing on one GPU: see ``python -m benchmarks.gpu --help``."""
