"""Benchmarks against real peers, in turns within one run; see bench/README.md."""
