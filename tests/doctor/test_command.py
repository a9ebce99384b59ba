"""``python -m fastnas.doctor`` as a user meets it."""

import json
import subprocess
import sys

import pytest
import torch

from fastnas import ops
from fastnas.doctor import __main__ as doctor
from fastnas.doctor import environment as here
from fastnas.doctor.bandwidth import Bandwidth
from fastnas.doctor.operators import OPERATORS


def run(capsys, *arguments):
    """Exit status and output."""
    try:
        doctor.main([*arguments])
    except SystemExit as stop:
        return stop.code, capsys.readouterr()
    return 0, capsys.readouterr()


def test_json(capsys):
    status, printed = run(capsys, "--device", "cpu", "--quick", "--json")
    found = json.loads(printed.out)
    assert status == 0
    assert found["ok"] is True
    assert {row["operator"] for row in found["operators"]} == {one.name for one in OPERATORS}
    assert {row["status"] for row in found["operators"]} == {"ok"}
    assert all(row["error"] <= row["tolerance"] for row in found["operators"])
    assert found["environment"]["torch"] == torch.__version__
    assert found["build"]["cpu_capability"] == found["environment"]["cpu_capability"]
    assert (found["bandwidth"], found["copy_bytes_per_second"]) == ([], None)


def test_a_wrong_operator_is_exit_status_1(capsys, sabotage, monkeypatch):
    sabotage("perturb_")
    wanted = [one for one in OPERATORS if one.name in ("perturb_", "vector_norm")]
    monkeypatch.setattr(doctor, "OPERATORS", wanted)
    status, printed = run(capsys, "--device=cpu", "--quick")
    assert status == 1
    lines = printed.out.splitlines()
    assert lines[-1] == "not right on this device: perturb_ in float32, perturb_ in float64"
    rows = {
        tuple(line.split()[:2]): line.split()
        for line in lines
        if line.startswith(("perturb_", "vector_norm"))
    }
    assert rows["perturb_", "float32"][-1] == "WRONG"
    assert rows["vector_norm", "float32"][-1] == "ok"


def test_not_a_number_is_json_too(capsys, sabotage, monkeypatch):
    wanted = [one for one in OPERATORS if one.name == "vector_norm"]
    monkeypatch.setattr(doctor, "OPERATORS", wanted)
    sabotage.replace(ops, "vector_norm", lambda real, x: real(x) * torch.nan)
    status, printed = run(capsys, "--device=cpu", "--quick", "--json")
    assert status == 1
    assert [row["error"] for row in json.loads(printed.out)["operators"]] == [None, None]
    assert run(capsys, "--device=cpu", "--quick")[1].out.count(" NaN ") == 2


def test_missing_kernels_and_a_lost_device_are_told():
    found = {
        "operators": [
            {
                "operator": "cell",
                "dtype": "float32",
                "status": "missing",
                "result": None,
                "reason": "no kernel",
            }
        ],
        "lost": "",
    }
    assert (
        doctor._verdict(found)
        == "every operator that runs here is right; without a kernel here: cell in float32"
    )


def test_bandwidths_are_shares_of_a_copy():
    one = Bandwidth("mixed_sum", "float32", bytes=4_000_000, seconds=2e-6, copy_seconds=1e-6)
    assert (one.rate, one.share) == (2e12, 0.5)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("tpu", "error: unknown --device 'tpu'; known are auto, cpu, cuda and cuda:N\n"),
        ("meta", "error: --device meta: only cpu and cuda are supported\n"),
        (
            "cuda:99",
            f"error: --device cuda:99: PyTorch finds {torch.cuda.device_count()} such devices here\n",
        ),
    ],
)
def test_a_mistake_is_one_sentence(capsys, device, sentence):
    status, printed = run(capsys, f"--device={device}")
    assert (status, printed.out, printed.err) == (2, "", sentence)


def test_as_a_process():
    command = [sys.executable, "-m", "fastnas.doctor", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--quick" in done.stdout
    assert not done.stderr


def test_the_driver_is_read_from_the_kernel_or_nvidia_smi(tmp_path, monkeypatch):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root)\n"
    monkeypatch.setattr(here.Path, "read_text", lambda path: text)
    assert here.driver_version() == "580.159.04"

    def absent(path):
        raise FileNotFoundError

    monkeypatch.setattr(here.Path, "read_text", absent)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert here.driver_version() == "unknown"
    program = tmp_path / "nvidia-smi"
    program.touch()
    program.write_bytes(b"#!/bin/sh\necho 570.1\n")
    program.chmod(0o755)
    assert here.driver_version() == "570.1"
