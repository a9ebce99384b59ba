"""What of a drawn cell touches what, read off its SVG."""

import re
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
STEPS, FINE = (np.linspace(0, 1, count)[:, None] for count in (17, 65))


class Drawn(NamedTuple):
    """Boxes as (left, top, right, bottom); paths as points along them, in the order of the graph's edges."""

    size: tuple
    nodes: np.ndarray
    labels: dict
    paths: list


def read(svg):
    """The parts of a cell's SVG."""
    root = ElementTree.fromstring(svg)
    groups = root.findall(f".//{SVG}g")
    nodes = [box(group) for group in groups if "cell-node" in group.get("class", "")]
    labels = {int(g.get("data-edge")): box(g) for g in groups if "cell-op" in g.get("class", "")}
    paths = [points(path.get("d")) for path in root.iter(f"{SVG}path")]
    return Drawn(tuple(map(float, root.get("viewBox").split()[2:])), np.array(nodes), labels, paths)


def box(group):
    rect = group.find(f"{SVG}rect")
    x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def points(data):
    """Points along a path of M, L and C."""
    found = []
    for command, text in re.findall(r"([MLC])([^MLC]*)", data):
        numbers = np.array(text.split(), float).reshape(-1, 2)
        if command == "M":
            found.append(numbers)
        elif command == "L":
            found.append(found[-1][-1:] * (1 - FINE) + numbers * FINE)
        else:
            first, second, end = numbers
            begin, s = found[-1][-1], STEPS
            found.append(
                begin * (1 - s) ** 3 + 3 * first * s * (1 - s) ** 2 + 3 * second * s**2 * (1 - s) + end * s**3
            )
    return np.concatenate(found)


def faults(graph, drawn, states):
    """What overlaps, as sentences; ``states`` are those drawn, in the order of their nodes."""
    boxes = np.array([*drawn.nodes, *drawn.labels.values()])
    names = [f"state {state}" for state in states] + [f"label {edge}" for edge in drawn.labels]
    found = [
        f"{names[i]} and {names[j]} overlap"
        for i, j in zip(*np.nonzero(np.triu(overlap(boxes), 1)), strict=True)
    ]
    width, height = drawn.size
    if boxes[:, :2].min() < 1 or boxes[:, 2].max() > width - 1 or boxes[:, 3].max() > height - 1:
        found.append("a box leaves the picture")
    for edge, path in enumerate(drawn.paths):
        source, target, _ = graph.edges[edge]
        own = {f"state {source}", f"state {target}", f"label {edge}"}
        x, y = path[:, :1], path[:, 1:]
        inside = (x > boxes[:, 0] - 1) & (x < boxes[:, 2] + 1) & (y > boxes[:, 1] - 1) & (y < boxes[:, 3] + 1)
        found += [
            f"edge {edge} runs through {names[i]}"
            for i in np.flatnonzero(inside.any(0))
            if names[i] not in own
        ]
        if path.min() < 1 or (path > np.array(drawn.size) - 1).any():
            found.append(f"edge {edge} leaves the picture")
        begin, end = (drawn.nodes[states.index(state)] for state in (source, target))
        if distance(path[0], begin) > 0.2 or not 2 < distance(path[-1], end) < 8:
            found.append(f"edge {edge} does not join its states")
        if edge in drawn.labels and distance(path, np.array(drawn.labels[edge])).min() > 0:
            found.append(f"edge {edge} does not pass its label")
    return found


def overlap(boxes):
    """Which boxes come nearer than two pixels to which."""
    near = [
        (boxes[:, None, i] < boxes[None, :, i + 2] + 2) & (boxes[None, :, i] < boxes[:, None, i + 2] + 2)
        for i in (0, 1)
    ]
    return near[0] & near[1]


def distance(point, box):
    """Of points from a box; 0 within."""
    outside = np.maximum(np.maximum(box[:2] - point, point - box[2:]), 0)
    return np.hypot(outside[..., 0], outside[..., 1])
