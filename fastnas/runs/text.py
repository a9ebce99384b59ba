"""The options of a run on text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastnas.errors import FastnasError
from fastnas.runs.options import Bounds, check_below_one, filled, flag
from fastnas.spaces.recurrent import Dropout


@dataclass(frozen=True)
class TextConfig:
    """A run on text alone. None: as DARTS' authors did."""

    hidden_size: int | None = None
    """Units of the embedding and of the hidden state; None: 300 to search, 850 to train."""
    bptt: int | None = None
    """Words of a window, through which gradients go back; None: 35."""
    dropout: float | None = None
    """Of the cell's output, before the decoder; None: 0.75."""
    dropout_state: float | None = None
    """Of each state, before the product that leads to a node; None: 0.25."""
    dropout_input: float | None = None
    """Of the cell's input; None: 0.75."""
    dropout_embedding: float | None = None
    """Of the embedded words; None: 0.2."""
    dropout_words: float | None = None
    """Of whole words; None: 0."""
    slowness: float | None = None
    """Weight of the training loss's term |h_t - h_(t-1)|^2; None: 0.001."""

    @property
    def rates(self) -> Dropout:
        """The probabilities of dropout, of a resolved configuration."""
        return Dropout(
            filled(self.dropout),
            filled(self.dropout_state),
            filled(self.dropout_input),
            filled(self.dropout_embedding),
            filled(self.dropout_words),
        )


TEXT_DEFAULTS: dict[str, Any] = {
    "bptt": 35,
    "dropout": 0.75,
    "dropout_state": 0.25,
    "dropout_input": 0.75,
    "dropout_embedding": 0.2,
    "dropout_words": 0.0,
    "slowness": 1e-3,
}
OF_TEXT = dict.fromkeys(("hidden_size", *TEXT_DEFAULTS))
TEXT_BOUNDS: Bounds = {name: (0, True) for name in TEXT_DEFAULTS} | {
    "hidden_size": (1, True),
    "bptt": (1, True),
}


def check_left_out(options: Mapping[str, Any], defaults: Mapping[str, Any], of: str, reads: str) -> None:
    """Raises FastnasError if one of the options of another kind of data, ``of``, was given where ``reads`` is read."""
    for name, default in defaults.items():
        if options[name] != default:
            raise FastnasError(
                f"{flag(name)} is about {of}, and space {options['space']} reads {reads}: leave it out"
            )


def check_rates(options: Mapping[str, Any]) -> None:
    """Raises FastnasError if a probability of dropout is not below 1."""
    check_below_one(options, [name for name in TEXT_DEFAULTS if name.startswith("dropout")])
