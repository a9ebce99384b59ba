"""The early stop, on series made by hand."""

import math

import pytest

from fastnas import FastnasError
from fastnas.search.early_stop import EarlyStop, Stop


def first_stop(series, first=1, **options):
    """The first stop along ``series``, observed after epochs 1, 2, ..."""
    rule = EarlyStop(first=first, **options)
    stops = (rule.observe(epoch, value) for epoch, value in enumerate(series, 1))
    return next((stop for stop in stops if stop), None)


def test_a_jump_ends_the_search_as_soon_as_the_mean_has_risen_by_a_third():
    """Ones, then fours from epoch 21: the mean of (1, 1, 1, 1, 4) is 1.6, and 1 / 1.6 < 0.75."""
    stop = first_stop([1.0] * 20 + [4.0] * 20)
    assert stop == Stop(epoch=14, at=21, before=1.0, after=1.6)
    # i = 19 is the middle of epochs 17 to 21, and i - 5 = 14 that of 12 to 16.
    assert str(stop) == (
        "stopped early after epoch 21: the largest eigenvalue of d2L2/dalpha2 rose from 1 to 1.6 "
        "(means of several epochs); the architecture is that of epoch 14"
    )


def test_a_slow_rise_does_not_end_it_and_a_fast_one_does():
    """At growth q an epoch the ratio of the means is q^-5: 0.75 is crossed at q = 0.75^(-1/5) = 1.0592."""
    assert first_stop([1.059**i for i in range(200)]) is None
    assert first_stop([1.0595**i for i in range(200)]) is not None
    assert first_stop([1.0595**i for i in range(200)]).at == 10


def test_the_ratio_itself_does_not_stop():
    """Strictly less: means of 3 and 4 are a ratio of 0.75."""
    assert first_stop([3.0] * 5 + [4.0] * 5) is None
    assert first_stop([3.0] * 5 + [4.0] * 4 + [4.000001]) == Stop(3, 10, 3.0, pytest.approx(4, abs=1e-6))


@pytest.mark.parametrize("length", range(10))
def test_a_series_shorter_than_two_windows_never_stops(length):
    assert first_stop([10.0**i for i in range(length)]) is None


def test_what_falls_or_stays_never_stops():
    assert first_stop([1.0] * 50) is None
    assert first_stop([50.0 - i for i in range(49)]) is None
    assert first_stop([0.0] * 50) is None


def test_one_outlier_less_than_the_mean_can_bear():
    """One value of x among ones makes a mean of (4 + x) / 5: it takes x > 8/3 to stop."""
    assert first_stop([1.0] * 10 + [2.6] + [1.0] * 10) is None
    assert first_stop([1.0] * 10 + [2.7] + [1.0] * 10).at == 11


def test_negative_means():
    """Without positive curvature there is nothing to rise; out of it, any rise is one."""
    assert first_stop([-1.0] * 30) is None
    assert first_stop([-4.0] * 10 + [-1.0] * 10) is None  # a ratio of 4, or of 1/4 upside down
    assert first_stop([-1.0] * 10 + [-4.0] * 10) is None
    assert first_stop([1.0] * 10 + [-1.0] * 10) is None
    assert first_stop([0.0] * 10 + [1.0] * 10) == Stop(epoch=4, at=11, before=0.0, after=0.2)
    # The mean of the newest five crosses zero with the third one.
    assert first_stop([-1.0] * 10 + [1.0] * 10) == Stop(epoch=6, at=13, before=-1.0, after=0.2)


def test_observations_that_are_epochs_apart_count_as_one_step_each():
    rule = EarlyStop(first=1)
    stops = [rule.observe(3 * n, 1.0 if n <= 8 else 3.0) for n in range(1, 11)]
    assert stops[:-1] == [None] * 9
    assert stops[-1] == Stop(epoch=9, at=30, before=1.0, after=1.8)


def test_other_windows_and_ratios():
    assert first_stop([2.0, 1.0, 2.0], window=1, ratio=0.5) is None
    assert first_stop([2.0, 1.0, 2.1], window=1, ratio=0.5) == Stop(2, 3, 1.0, 2.1)
    assert first_stop([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], window=3) == Stop(2, 6, 1.0, 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "1", True])
def test_an_eigenvalue_that_is_no_number(bad):
    with pytest.raises(FastnasError, match="the eigenvalue of epoch 4 is no finite number"):
        EarlyStop().observe(4, bad)


def test_epochs_must_rise():
    rule = EarlyStop()
    rule.observe(4, 1.0)
    with pytest.raises(FastnasError, match="epoch 4 comes after epoch 4"):
        rule.observe(4, 1.0)


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"window": 4}, {"window": 5.0}, {"ratio": 0}, {"ratio": 1.1}, {"first": 0}]
)
def test_arguments_out_of_range(options):
    with pytest.raises(FastnasError, match=f"EarlyStop: {next(iter(options))} must be"):
        EarlyStop(**options)


def test_the_first_ten_epochs_are_not_gone_back_to():
    """A rise at the beginning is the weights' learning; one that goes on is seen as soon as i - 5 = 11."""
    assert EarlyStop().first == 11
    assert first_stop([float(i) for i in range(1, 13)] + [12.0] * 30, first=11) is None
    assert first_stop([float(i) for i in range(1, 13)] + [12.0] * 30) is not None
    stop = first_stop([1.1**i for i in range(40)], first=11)
    assert (stop.epoch, stop.at) == (11, 18)


@pytest.mark.parametrize("every", range(1, 15))
@pytest.mark.parametrize(("window", "first"), [(5, 11), (5, 1), (3, 7), (1, 1), (1, 9)])
def test_the_earliest_stop(every, window, first):
    """Of a series that rises all the time, by trying."""
    rule = EarlyStop(window=window, first=first)
    stops = (rule.observe(every * n, 4.0**n) for n in range(1, 60))
    assert next(stop.at for stop in stops if stop) == rule.earliest(every)
