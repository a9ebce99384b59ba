"""What the documentation shows runs, and what its table of methods says is so."""

import re
from pathlib import Path

import pytest

from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, toy_problem, unroll
from tests.bilevel.test_memory import RANK, TERMS, VECTORS

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/hypergradients.md")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS_FILES = "images.npz"  # the search of the README: tests/search has its like


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, capsys):
    """One after the other, in one namespace, as a reader would type them."""
    blocks = [block for block in BLOCK.findall((ROOT / page).read_text()) if NEEDS_FILES not in block]
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    assert "nan" not in capsys.readouterr().out


def rows():
    """The table of methods: name -> its cells."""
    table = {}
    for line in (ROOT / "docs/hypergradients.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        name = cells[0].strip("`")
        if name in METHODS and len(cells) >= 6:
            table[name] = cells
    return table


def value(expression, **names):
    """2K + 3 with K = 2."""
    return eval(re.sub(r"(\d)([A-Za-z])", r"\1*\2", expression), {}, names)


def test_every_method_has_its_row():
    assert sorted(rows()) == sorted(METHODS)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "exact"])
def test_costs_in_the_table(name):
    """Gradients are the registry's, vectors those that tests/bilevel/test_memory.py measures."""
    _, _, gradients, vectors = rows()[name][:4]
    back = {"reverse": 3, "truncated-reverse": 2}.get(name, TERMS)
    names = {"K": back, "T": 3, "S": 7, "k": RANK}
    settings = InnerSettings(
        learning_rate=0.1,
        neumann_terms=TERMS,
        rank=RANK,
        limit=7,
        reverse_steps=2,
        trajectory=unroll(toy_problem(), InnerSgd(0.1), 3),
    )
    assert value(gradients, **names) == METHODS[name].gradients(settings)
    recorded = {"reverse": 3, "truncated-reverse": 2}.get(name, 0)
    assert value(vectors, **names) == VECTORS[name] + recorded
