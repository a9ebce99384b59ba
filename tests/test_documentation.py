"""What the documentation shows runs, and what its table of methods says is so."""

import re
from pathlib import Path

import pytest

from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, toy_problem, unroll
from tests.bilevel.test_memory import RANK, TERMS, VECTORS
from tests.documentation.blocks import OURS, ROOT, blocks, pages, parse
from tests.documentation.commands import check
from tests.documentation.running import page_run

# Pages whose tests look at what they leave behind run them there, once.
ELSEWHERE = {"docs/new-space.md": "tests/spaces/test_new_space.py"}


@pytest.mark.parametrize("page", [page for page in pages() if page not in ELSEWHERE])
def test_page_runs(page, tmp_path, capsys):
    """Python one block after the other, in one namespace; commands by their markers, or to their parsers alone."""
    with page_run(page, tmp_path):
        pass
    assert not re.search(r"\bnan\b", capsys.readouterr().out)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_page_runs_elsewhere(page):
    assert f'page_run("{page}"' in (ROOT / ELSEWHERE[page]).read_text()


def test_every_command_of_a_guide_says_whether_it_runs():
    """One that is not run there is so on purpose."""
    for page in pages():
        for block in blocks(page):
            if page.startswith("docs/guide/") and any(command.ours for command in block.commands()):
                assert block.marker, (
                    f"{block.place}: write <!-- run --> or <!-- not run: why --> above the block"
                )


@pytest.mark.parametrize("page", pages())
def test_what_is_a_file_is_used(page):
    """A block with a title is a file for what comes after it on the page."""
    found = blocks(page)
    for i, block in enumerate(found):
        if block.title and block.marker != "not run":
            names = (block.title, Path(block.title).stem)
            assert any(name in after.code for name in names for after in found[i + 1 :]), block.place


SAMPLE = """
Text with `python -m fastnas.search --no-such` in it.

<!-- run with: --images 64 --epochs 1 -->
```console
$ OMP_NUM_THREADS=1 python -m fastnas.search --space darts \\
    --method idarts | tail   # a comment, isn't it
python -m nothing
```
- in a list

  <!-- not run: a day -->
  ```
  for m in darts idarts; do python -m fastnas.search --method $m; done
  torchrun --nproc-per-node 8 -m fastnas.retrain ... --genotype '|a~0|+'
  ```

```python title="gate.py"
x = 1
```
"""


def test_blocks_are_read():
    run, not_run, file = parse(SAMPLE, "page")
    assert (run.marker, run.more, run.line) == ("run with", ["--images", "64", "--epochs", "1"], 5)
    (command,) = run.commands()
    assert (command.module, command.arguments) == (
        "fastnas.search",
        ("--space", "darts", "--method", "idarts"),
    )
    assert (not_run.marker, not_run.note) == ("not run", "a day")
    first, second = not_run.commands()
    assert first.arguments == ("--method", "darts")
    assert second.launched
    assert second.arguments == ("--genotype", "|a~0|+")
    assert (file.title, file.code, file.marker) == ("gate.py", "x = 1\n", None)


@pytest.mark.parametrize("comment", ["runs", "run with", "not run", "run: why"])
def test_a_comment_that_is_no_marker_is_an_error(comment):
    with pytest.raises(AssertionError, match="page:2: "):
        parse(f"<!-- {comment} -->\n```\n```\n", "page")


def checked(line):
    (block,) = parse(f"```\n{line}\n```\n", "page")
    (command,) = block.commands()
    check(command, block.place)


@pytest.mark.parametrize(
    "line",
    [
        "python -m fastnas.search --resume runs/NAME --recompute",
        "python -m fastnas.retrain --genotype runs/NAME --recipe nasbench201-12 --dataset cifar10 --data DIR",
        "python -m fastnas.audit --checkpoint runs/NAME --json",
        "python -m fastnas.describe --help",
        "python -m fastnas.build_info",
    ],
)
def test_a_command_about_what_is_not_here_is_taken(line, capsys):
    checked(line)


@pytest.mark.parametrize(
    "line",
    [
        "python -m fastnas.search --no-such-flag 1",
        "python -m fastnas.search --epochs many",
        "python -m fastnas.search --method no-such",
        "python -m fastnas.search --space nasbench201 --dataset ptb",
        "python -m fastnas.search --resume runs/NAME --no-such-flag",
        "python -m fastnas.retrain --genotype runs/NAME --dataset no-such",
        "python -m fastnas.audit --checkpoint runs/NAME --hvp no-such",
        "python -m fastnas.describe --space no-such",
        "python -m fastnas.describe --memory --method no-such",
        "python -m fastnas.tables nasbench201 --no-such",
        "python -m fastnas.sweep --dry-run",
        "python -m fastnas.build_info --json",
        "python -m fastnas.no_such",
        "python -m examples.weight_decay --no-such",
    ],
)
def test_a_command_that_its_program_refuses_is_found(line, capsys):
    with pytest.raises(AssertionError):
        checked(line)


def test_commands_of_this_project_are_all_looked_at():
    """What begins with them is taken for a command by the reader of blocks, on every page."""
    for page in pages():
        for block in blocks(page):
            lines = re.findall(rf"^(?:\$ )?python -m (?:{'|'.join(OURS)})\b", block.code, re.MULTILINE)
            if block.language != "python":
                assert len(block.commands()) >= len(lines), block.place


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
