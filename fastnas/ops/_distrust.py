"""The native ops that computed wrong numbers on this machine: their functions run plain PyTorch instead."""

from __future__ import annotations

# Names as in fastnas.ops, and "cell". Empty unless a first-use check (fastnas.doctor.first_use) found otherwise.
DISTRUSTED: set[str] = set()

# Any of them takes the fused cells with it: they call the native ops themselves.
OPS_OF_A_CELL = frozenset({"cell", "normalised_mixed_sum", "separable_stage", "shared_pooling"})
