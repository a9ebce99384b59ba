"""Random calls of the native operators, as ``torch.ops.fastnas`` takes them: ``python -m tests.ops.fuzz --help``."""
