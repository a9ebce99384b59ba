"""Every reader that is fuzzed, by name; hypothesis (test_targets.py) and atheris (``make fuzz``) go through it."""

from tests.fuzz import commands, data, genotypes, runs, tables
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for group in (genotypes, data, tables, runs, commands) for target in group.TARGETS
}
