"""``python -m fastnas.describe``: what a supernet or a genotype's discrete network is, costs and takes."""

from fastnas.describe.command import main
from fastnas.describe.network import Description, StageDescription, describe

__all__ = ["Description", "StageDescription", "describe", "main"]
