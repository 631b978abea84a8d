"""Benchmarks that compare two or more sides: one process, in turn, with medians and quartiles of the ratio."""
