"""What the method costs on one GPU; ``python -m benchmarks.gpu --help`` says how to measure it."""
