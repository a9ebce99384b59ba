"""What the guides say in passing, beside their blocks: flags that there are, costs that the code counts."""

import dataclasses
import re

import pytest

from fastnas.audit.config import AuditConfig
from fastnas.bilevel import METHODS, InnerSettings, InnerSgd, toy_problem, unroll
from fastnas.describe.command import DescribeConfig
from fastnas.doctor.__main__ import DoctorConfig
from fastnas.report.command import ReportConfig
from fastnas.retrain import RetrainConfig
from fastnas.search import SearchConfig
from tests.documentation.blocks import FENCE, ROOT

COMMANDS = (AuditConfig, DescribeConfig, DoctorConfig, ReportConfig)
# Of torchrun and of programs with commands of their own.
OTHERS = {"help", "max-restarts", "memory-limit", "classes", "image-channels", "file", "dry-run"}
PAGES = ("quick-start", "own-images", "choosing-an-estimator", "gpu", "from-darts", "faq")


def flags():
    """All that there are, without their dashes."""
    names = {*SearchConfig().to_options(), *RetrainConfig().to_options()}
    names |= {field.name for config in COMMANDS for field in dataclasses.fields(config)}
    return {name.replace("_", "-") for name in names} | OTHERS


@pytest.mark.parametrize("page", PAGES)
def test_flags_named_in_the_text_exist(page):
    """But those of other projects: the first column of a table of theirs."""
    text = FENCE.sub("", (ROOT / f"docs/guide/{page}.md").read_text())
    found = 0
    for line in text.splitlines():
        theirs = page == "from-darts" and line.startswith("|")
        ours = "|".join(line.split("|")[2:]) if theirs else line
        for flag in re.findall(r"--([a-z][\w-]*)", " ".join(re.findall(r"`([^`]+)`", ours))):
            found += 1
            assert flag.replace("_", "-") in flags(), f"{page}: --{flag}: {line[:80]}"
    assert found


def test_gradients_in_the_table_of_estimators():
    """Those of the registry, at the defaults that the page names."""
    defaults = SearchConfig().hypergradient
    settings = InnerSettings(
        learning_rate=0.1,
        neumann_terms=defaults.neumann_terms,
        rank=defaults.rank,
        limit=defaults.solver_steps,
        reverse_steps=defaults.reverse_steps,
        trajectory=unroll(toy_problem(), InnerSgd(0.1, clip=5.0), 4),
    )
    rows = re.findall(
        r"^\| `([\w-]+)` \| (?:up to )?(\d+) \|",
        (ROOT / "docs/guide/choosing-an-estimator.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(name for name, _ in rows) == sorted(set(METHODS) - {"exact", "idarts-release"})
    for name, gradients in rows:
        assert int(gradients) == METHODS[name].gradients(settings), name


def test_cosines_are_those_of_the_audit():
    """Of the output that docs/audit.md shows: `term` to A, two figures, and whether the row has its warning."""
    output = (ROOT / "docs/audit.md").read_text()
    rows = re.findall(
        r"^([a-z][\w-]+) +(exact|r = [\d.]+) +\S+ +\S+ +([\d.]+) .*?( !)?$", output, re.MULTILINE
    )
    audited = {(name, way): f"{float(term):.2f}" + (", cut" if cut else "") for name, way, term, cut in rows}
    table = re.findall(
        r"^\| `([\w-]+)` \| (\d\S.*?) \| (\d\S.*?) \| (\d\S.*?) \|$",
        (ROOT / "docs/guide/choosing-an-estimator.md").read_text(),
        re.MULTILINE,
    )
    assert len(table) == 9
    for name, *cosines in table:
        assert cosines == [audited[name, way] for way in ("exact", "r = 0.1", "r = 0.01")], name
