"""NAS-Bench-101 (Ying et al. 2019): cells as graphs with an operation on each vertex, and their networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastnas.errors import FastnasError
from fastnas.spaces.description import Head, MatrixCell, Pool, Space, Stage, Stem
from fastnas.spaces.genotype import Drawable, Graph, is_integer, json_object, shorten

NASBENCH101_PRIMITIVES = ("maxpool3x3", "conv3x3-bn-relu", "conv1x1-bn-relu")
MOST_VERTICES, MOST_EDGES = 7, 9

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CellMatrix(Drawable):
    """NAS-Bench-101's cell: an upper triangular adjacency matrix, and the operation of each vertex.

    The first vertex is the input, the last one the output. What no way from input to output passes through is no part
    of the network, and :meth:`pruned` leaves it out. ``str()`` gives JSON, which :meth:`parse` reads.

    >>> cell = CellMatrix(((0, 1, 1), (0, 0, 1), (0, 0, 0)), ("input", "conv3x3-bn-relu", "output"))
    >>> str(cell)
    '{"matrix": [[0, 1, 1], [0, 0, 1], [0, 0, 0]], "operations": ["input", "conv3x3-bn-relu", "output"]}'
    """

    matrix: Matrix
    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_matrix(self.matrix)
        _check_operations(self.operations, len(self.matrix))
        used = _used(self.matrix)
        if not used:
            raise FastnasError("NAS-Bench-101 cell: no way leads from the input to the output")
        edges = sum(map(sum, _part(self.matrix, used)))
        if edges > MOST_EDGES:
            raise FastnasError(f"NAS-Bench-101 cell: it may have {MOST_EDGES} edges at most, got {edges}")

    def __str__(self) -> str:
        return json.dumps({"matrix": self.matrix, "operations": self.operations})

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dump``; :meth:`parse` reads it back."""
        return {
            "space": "nasbench101",
            "matrix": [list(row) for row in self.matrix],
            "operations": list(self.operations),
        }

    def skip_share(self) -> float:
        """The share of max poolings, the one primitive without weights, among the operations of the pruned cell."""
        operations = self.pruned().operations[1:-1]
        return operations.count("maxpool3x3") / max(len(operations), 1)

    def graphs(self) -> tuple[Graph, ...]:
        """The pruned cell as a graph, whose vertices have the operations."""
        pruned = self.pruned()
        size = len(pruned.matrix)
        ends = [(source, target) for source in range(size) for target in range(size)]
        edges = tuple((source, target, "") for source, target in ends if pruned.matrix[source][target])
        return (Graph("cell", pruned.operations, edges),)

    def pruned(self) -> CellMatrix:
        """The cell without vertices that no way from the input to the output passes through."""
        used = self.used()
        return CellMatrix(_part(self.matrix, used), tuple(self.operations[vertex] for vertex in used))

    def used(self) -> list[int]:
        """The vertices that :meth:`pruned` keeps."""
        return _used(self.matrix)

    @classmethod
    def parse(cls, text: str) -> CellMatrix:
        """From JSON: ``matrix`` (or ``module_adjacency``) and ``operations`` (or ``ops``, ``module_operations``).

        Raises:
            FastnasError: it is something else, or the cell is not valid.
        """
        fields = json_object(text) or {}
        matrix = _first(fields, "matrix", "module_adjacency")
        operations = _first(fields, "operations", "ops", "module_operations")
        if not _is_matrix(matrix) or not _is_list_of(str, operations):
            raise FastnasError(
                'not a NAS-Bench-101 cell: expected {"matrix": [[0, 1, ...], ...], "operations": ["input", ..., '
                f'"output"]}}, got {shorten(text)}'
            )
        return cls(tuple(tuple(row) for row in matrix), tuple(operations))


def network(cell: CellMatrix, channels: int, layers: int, classes: int, image_channels: int = 3) -> Space:
    """The discrete network of ``cell``, as the benchmark trained it (C = 128, 9 cells in 3 stacks)."""
    pruned = cell.pruned()

    def stage(width: int, _: int) -> MatrixCell:
        return MatrixCell(pruned.matrix, pruned.operations[1:-1], width)

    return Space("nasbench101", image_channels, (*stacks(channels, layers, stage), Head(classes)))


def stacks(channels: int, layers: int, cell_of: Any) -> tuple[Stage, ...]:
    """Stem and ``layers`` cells in three stacks; before the second and third, images halve and channels double.

    Args:
        cell_of: (channels, stage that it reads) -> a cell.
    """
    stages: list[Stage] = [Stem(channels, rectified=True)]
    width = channels
    for layer in range(layers):
        if layer in (layers // 3, 2 * layers // 3):
            stages.append(Pool(stages[-1].out_channels))
            width *= 2
        stages.append(cell_of(width, len(stages) - 1))
    return tuple(stages)


def _used(matrix: Matrix) -> list[int]:
    """Vertices that a way from the first to the last one passes through, both included; empty: there is no way."""
    size = len(matrix)
    from_input, to_output = {0}, {size - 1}
    for vertex in range(1, size):
        if any(matrix[source][vertex] for source in from_input):
            from_input.add(vertex)
    for vertex in reversed(range(size - 1)):
        if any(matrix[vertex][target] for target in to_output):
            to_output.add(vertex)
    used = sorted(from_input & to_output)
    return used if 0 in used else []


def _part(matrix: Matrix, vertices: Sequence[int]) -> Matrix:
    return tuple(tuple(matrix[source][target] for target in vertices) for source in vertices)


def _check_matrix(matrix: Matrix) -> None:
    size = len(matrix)
    if not 2 <= size <= MOST_VERTICES or any(len(row) != size for row in matrix):
        raise FastnasError(
            f"NAS-Bench-101 cell: the matrix must be square, with 2 to {MOST_VERTICES} rows, "
            f"got {size} of {sorted({len(row) for row in matrix})} numbers"
        )
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value not in (0, 1) or (value == 1 and j <= i):
                raise FastnasError(
                    "NAS-Bench-101 cell: the matrix must be of 0 and 1, with ones above its diagonal only, "
                    f"got {value} in row {i}, column {j}"
                )


def _check_operations(operations: Sequence[str], size: int) -> None:
    if len(operations) != size or operations[0] != "input" or operations[-1] != "output":
        raise FastnasError(
            f"NAS-Bench-101 cell: {size} operations are needed, from 'input' to 'output', got {list(operations)}"
        )
    for operation in operations[1:-1]:
        if operation not in NASBENCH101_PRIMITIVES:
            raise FastnasError(
                f"NAS-Bench-101 cell: unknown operation {operation!r}; known are {', '.join(NASBENCH101_PRIMITIVES)}"
            )


def _first(fields: dict[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _is_matrix(value: Any) -> bool:
    return _is_list_of(list, value) and all(is_integer(number) for row in value for number in row)


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)
