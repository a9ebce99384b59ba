"""Benchmarks of fastnas against plain PyTorch."""
