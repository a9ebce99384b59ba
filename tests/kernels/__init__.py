"""Triton kernels, on machines without a GPU: run by Triton's interpreter, and compiled for several GPUs."""

import importlib.util
import platform
import sys

import pytest


def skip_without_triton():
    """Skip the file where no Triton can be had. Elsewhere the tests need it: the extra ``dev`` brings it along."""
    for_us = (sys.platform, platform.machine()) == ("linux", "x86_64")
    if importlib.util.find_spec("triton") is None and not for_us:
        pytest.skip("Triton is made for Linux on x86-64 alone", allow_module_level=True)
