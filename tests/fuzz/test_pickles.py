"""Planted payloads: none is run, by no reader of pickles; and what would take ages or all memory is refused."""

import pickle

import pytest

from fastnas.errors import FastnasError
from tests.fuzz.pickles import CANARY, bombs, payloads
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import hold, refusal

READERS = (
    "plain-pickle",
    "cifar-python",
    "table-official-pickle",
    "table-official-folder",
    "table-everything-kept",
)
# What is refused for another reason than the name that it asks for, or is no harm: a tensor's storage is passed over.
UNNAMED = ("extension", "persistent", "buffer", "codec", "build-")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", payloads())
def test_nothing_is_run(reader, name):
    read, content = TARGETS[reader].read, payloads()[name]
    hold(read, content)
    assert not CANARY.exists()
    if not name.startswith(UNNAMED):
        assert "refused, because the pickle asks for" in str(refusal(read, content))


@pytest.mark.parametrize(
    "name", ["reduce", "stack-global", "inst", "obj", "newobj", "eval", "exec", "alone", "key", "framed"]
)
def test_the_payloads_are_real(name):
    try:
        with pytest.raises((AssertionError, TypeError)):
            hold(pickle.loads, payloads()[name])
    finally:
        ran = CANARY.exists() or name == "newobj"  # which does not wait for its process
        CANARY.unlink(missing_ok=True)
    assert ran


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", bombs())
def test_bombs_do_not_go_off(reader, name):
    hold(TARGETS[reader].read, bombs()[name])


@pytest.mark.parametrize("reader", READERS[:2])
def test_numbers_of_steps_have_a_bound(reader):
    """Each of these bytes would be an object of 56."""
    with pytest.raises(FastnasError, match=r"more than \d+ steps"):
        TARGETS[reader].read(b"\x80\x04" + b"]" * 200_000 + b".")
