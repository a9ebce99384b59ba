"""Every reader ends with a result or one sentence, on valid inputs and on mutated ones.

``FASTNAS_FUZZ=long`` tries thousands of other examples each time.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import hold, refusal

LONG = os.environ.get("FASTNAS_FUZZ") == "long"
PROFILE = settings(
    max_examples=2000 if LONG else 30,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow mentions what it can read over
@pytest.mark.parametrize("name", TARGETS)
def test_a_result_or_a_sentence(name):
    target = TARGETS[name]
    for seed in target.seeds():
        refusal(target.read, seed)  # what is loaded at the first call is loaded then
        hold(target.read, seed)

    @PROFILE
    @given(content=mutated(target))
    def on_mutated_inputs(content):
        hold(target.read, content)

    on_mutated_inputs()


@pytest.mark.parametrize("name", TARGETS)
def test_the_watch_sees_a_reader_that_runs_what_it_is_given(name, monkeypatch):
    """Each target is under watch: were its reader replaced by one that executes, the test above would fail."""
    target = TARGETS[name]
    with pytest.raises(AssertionError, match="it did"):
        hold(lambda content: (eval("1 + 1"), target.read(content)), target.seeds()[0])
