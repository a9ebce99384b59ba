"""The benchmark of a GPU, on the CPU: its logic, its report, and the script that runs everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_cell, gpu_contenders, gpu_report
from bench.contenders import METHODS, Contest, batches
from bench.gpu_contenders import CONTENDERS, Contender, GraphedSearch, NotAvailableError
from bench.vanilla import Search, SearchSettings, concat

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--device=cpu", "--batch-size=2", "--channels=4", "--layers=1", "--image-size=8", "--rounds=3"]
TINY += ["--group-seconds=0.1", "--spaces", "darts"]
NEED_A_GPU = {one.name for one in CONTENDERS if "CUDA graphs" in one.name or "bfloat16" in one.name}


def measured(capsys, *arguments):
    gpu.main([*TINY, *arguments])
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "result.json"
    gpu.main([*TINY, "--methods", "forward-backward", f"--out={out}"])
    return out


def test_a_pass_on_the_cpu(one_pass):
    result = json.loads(one_pass.read_text())
    (group,) = result["groups"]
    assert (group["space"], group["method"], group["reason"]) == ("darts", "forward-backward", "")
    assert [row["quantity"] for row in group["agreement"]] == [
        "logits",
        "weight gradients",
        "alpha gradients",
    ]
    rows = {row["name"]: row for row in group["contenders"]}
    assert list(rows) == [one.name for one in CONTENDERS]
    for name, row in rows.items():
        if name in NEED_A_GPU:
            assert (row["status"], row["reason"]) == ("not available", "needs a GPU")
    for name in ("vanilla", "vanilla, channels last", "fastnas"):
        row = rows[name]
        assert row["status"] == "measured"
        assert 0 < row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["difference"] is None if name == "vanilla" else row["difference"] < 1e-4
        assert row["peak_bytes"] > 0
        assert row["kernels"] is None
        assert row["speedup"] == pytest.approx(
            rows["vanilla"]["seconds"]["median"] / row["seconds"]["median"]
        )
    assert rows["vanilla"]["native_bytes"] is None
    fused = rows["fastnas"]
    assert fused["native_bytes_per_second"] == pytest.approx(
        fused["native_bytes"] / fused["seconds"]["median"]
    )
    assert result["cell"]["reason"] == "needs a GPU"
    assert result["environment"]["torch"] == torch.__version__
    json.dumps(result, allow_nan=False)


def test_steps_and_what_plain_pytorch_does_not_have(capsys):
    result = measured(capsys, "--methods", "first-order", "t1-t2", "--compile-seconds=0")
    first, last = result["groups"]
    rows = {row["name"]: row for row in first["contenders"]}
    steps = 25_000 / 2
    for name in ("vanilla", "fastnas"):
        assert rows[name]["epoch_seconds"] == pytest.approx(steps * rows[name]["seconds"]["median"])
    rows = {row["name"]: row for row in last["contenders"]}
    assert rows["fastnas"]["status"] == "measured"
    assert "speedup" not in rows["fastnas"]
    assert rows["vanilla"]["reason"] == "plain PyTorch has no t1-t2 step here"
    assert result["cell"] is None


def test_what_matters_most_comes_first():
    order = [(contest.space, contest.method) for contest in gpu.GpuConfig(device="cpu").contests()]
    first = [(space, method) for space in ("darts", "nasbench201") for method in gpu.ORDER[:2]]
    assert order[:4] == first
    assert len(set(order)) == len(order) == 2 * len(gpu.ORDER)


def test_no_group_begins_when_the_time_is_over(capsys, tmp_path):
    out = tmp_path / "folder" / "result.json"
    with pytest.raises(SystemExit) as stop:
        gpu.main([*TINY, "--seconds=0", f"--out={out}"])
    assert stop.value.code == 2
    assert "nothing could be measured" in capsys.readouterr().err
    result = json.loads(out.read_text())
    assert {group["reason"] for group in result["groups"]} == {"no time was left"}
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]


def test_a_disagreement_is_not_timed(capsys, monkeypatch):
    def other_alphas(*arguments):
        net = gpu_contenders.fastnas_model(*arguments)
        net.alphas.flat.mul_(-50)
        return net

    monkeypatch.setattr(gpu, "fastnas_model", other_alphas)
    monkeypatch.setattr(gpu, "alternate", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit):
        gpu.main([*TINY, "--methods", "forward-backward"])
    printed = capsys.readouterr()
    assert "fastnas and plain PyTorch disagree, so nothing was timed" in printed.out


def test_a_contender_that_fails_leaves_the_others(capsys, monkeypatch):
    def raises(contest, model):
        raise RuntimeError("CUDA out of memory\nand more")

    def wrong(contest, model):
        return lambda: [torch.zeros(sum(p.numel() for p in [*model.parameters(), *model.alphas]))]

    changed = [Contender("broken", False, 0, raises), Contender("wrong", False, 0, wrong)]
    monkeypatch.setattr(gpu, "CONTENDERS", (CONTENDERS[0], *changed))
    result = measured(capsys, "--methods", "forward-backward")
    rows = {row["name"]: row for row in result["groups"][0]["contenders"]}
    assert (rows["broken"]["status"], rows["broken"]["reason"]) == ("failed", "CUDA out of memory")
    assert rows["wrong"]["status"] == "not available"
    assert rows["wrong"]["reason"] == "its gradients differ from plain PyTorch's by 1"
    assert rows["vanilla"]["status"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--methods", "evolution"],
            "error: unknown method 'evolution'; known are forward-backward, idarts,",
        ),
        (["--spaces", "nasbench101"], "error: unknown space 'nasbench101'; known are darts, nasbench201\n"),
        (["--rounds=2"], "error: rounds must be at least 3, got 2\n"),
        (["--seconds=-1"], "error: seconds must be at least 0, got -1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--device=cpu", *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_bfloat16_must_be_as_exact_as_plain_pytorchs():
    """The reference executor runs within autocast on a CPU, too."""
    contest = Contest(channels=4, layers=1, batch_size=4, image_size=8)
    model = gpu.vanilla_model(contest)
    net = gpu_contenders.fastnas_model(contest, "reference", model)
    gpu_contenders.require_precision(contest, model, net, torch.bfloat16)
    net.weights.flat.mul_(1.5)
    with pytest.raises(NotAvailableError, match=r"in bfloat16 the .* are off by"):
        gpu_contenders.require_precision(contest, model, net, torch.bfloat16)


@pytest.mark.parametrize("method", METHODS[1:])
def test_passes_in_graphs_take_the_same_steps(method):
    """With passes that compute into the same tensors each time, as a replayed graph does."""

    class Replay:
        def __init__(self, compute, results):
            self.compute, self.results = compute, results

        def replay(self):
            for mine, new in zip(self.results, self.compute(), strict=True):
                mine.copy_(new)

    class Repeating(GraphedSearch):
        def _capture(self, batch, wrt, model):
            results = [torch.full_like(one, torch.nan) for one in wrt]
            return (
                Replay(lambda: Search.gradients(self, batch, wrt, model), results),
                results,
                (batch, wrt, model),
            )

    contest = Contest(channels=4, layers=1, batch_size=2, image_size=8, method=method, inner_steps=2)
    ends = []
    for kind in (Search, Repeating):
        model = gpu.vanilla_model(contest).double()
        search = kind(model, SearchSettings())
        val, *train = batches(contest, 1 + contest.weight_steps, torch.float64)
        for _ in range(2):  # the second one sees a momentum buffer, and alphas that moved
            getattr(search, f"{method.replace('-', '_')}_step")(train, val)
        ends.append((concat(search.weights).detach(), concat(model.alphas).detach()))
    for plain, graphed in zip(*ends, strict=True):
        torch.testing.assert_close(graphed, plain, rtol=1e-9, atol=1e-11)


def test_what_a_contender_warns_of_is_noted(capsys, monkeypatch):
    def warns(contest, model):
        code = compile("import warnings; warnings.warn('no graph')", "fastnas/supernet/graphs.py", "exec")
        exec(code)
        return CONTENDERS[0].make(contest, model)

    monkeypatch.setattr(gpu, "CONTENDERS", (CONTENDERS[0], Contender("graphs", False, 0, warns)))
    result = measured(capsys, "--methods", "first-order", "--compile-seconds=0")
    assert [row["notes"] for row in result["groups"][0]["contenders"]] == [[], ["no graph"]]
    assert "graphs: no graph" in gpu_report.benchmark_lines(result)


def test_one_cell(monkeypatch):
    monkeypatch.setattr(gpu_cell, "_ROUNDS", 2)
    found = gpu_cell.measure_cell("cpu", 2, 4, 8, compiler=lambda cell: cell)
    assert [row["name"] for row in found["contenders"]] == ["vanilla", "vanilla, torch.compile", "fastnas"]
    assert all(row["seconds"]["median"] > 0 for row in found["contenders"])
    with pytest.raises(RuntimeError, match=r"torch\.compile disagrees"):
        gpu_cell.measure_cell("cpu", 2, 4, 8, compiler=lambda cell: lambda *x: 2 * cell(*x))


def test_kernels_by_time():
    events = {f"kernel {k}": (k, float(k)) for k in range(30)} | {"Memcpy HtoD": (3, 65.0)}
    top = gpu.top_kernels(events)
    assert len(top) == gpu.TOP_KERNELS
    assert top[0] == {"name": "Memcpy HtoD", "calls": 3, "seconds": 65.0, "share": 0.13}
    assert [row["calls"] for row in top[1:3]] == [29, 28]
    assert gpu._is_copy("Memset (Device)")
    assert not gpu._is_copy("fastnas::mixed_sum::forward")


# ---------------------------------------------------------------------------- the report


def test_the_report_of_nothing(tmp_path):
    result = gpu_report.collect(tmp_path)
    assert not result["ok"]
    assert gpu_report.markdown(result).startswith("# unknown GPU\n")


def test_the_report(tmp_path, capsys):
    parts, out = tmp_path / "parts", tmp_path / "out"
    parts.mkdir()
    (parts / "gpu.txt").write_text("NVIDIA H100 80GB HBM3, 580.159.04\n")
    (parts / "status.tsv").write_text("build\t0\t31\t240\ntests\t1\t12\t120\nmemcheck\t124\t80\t80\n")
    (parts / "tests.log").write_text("one\ntwo\n")
    cases = "".join(
        f'<testcase classname="tests.gpu.test_gpu" name="{name}">{inner}</testcase>'
        for name, inner in (("a", ""), ("b", "<failure>where\nwhy</failure>"), ("c", "<skipped/>"))
    )
    (parts / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    (parts / "benchmark.json").write_text('{"cut')
    gpu_report.main(str(parts), str(out))
    names = capsys.readouterr().out.split()
    assert [Path(name).name for name in names] == ["nvidia-h100-80gb-hbm3.json", "nvidia-h100-80gb-hbm3.md"]
    result = json.loads(Path(names[0]).read_text())
    assert (result["device"], result["driver"]) == ("NVIDIA H100 80GB HBM3", "580.159.04")
    outcomes = {name: part["outcome"] for name, part in result["parts"].items()}
    assert outcomes == {"build": "passed", "tests": "failed", "memcheck": "cut off"}
    assert result["parts"]["tests"]["log"] == ["one", "two"]
    expected = {"passed": 1, "failed": 1, "skipped": 1, "failures": ["tests.gpu.test_gpu::b"]}
    expected["texts"] = ["where\nwhy"]
    assert result["tests"] == expected
    assert (result["ok"], result["benchmark"]) == (False, None)
    text = Path(names[1]).read_text()
    assert "| memcheck | cut off | 80 | 80 |" in text
    assert "* failed: `tests.gpu.test_gpu::b`" in text


def test_the_report_of_what_doctor_and_benchmark_found(tmp_path, one_pass):
    from fastnas.doctor import __main__ as doctor

    found = {
        "environment": vars(doctor.environment(torch.device("cpu"))),
        "operators": [
            {"operator": "cell", "dtype": "float32", "status": "missing", "result": None, "reason": "no kernel"},
            {"operator": "mixed_sum", "dtype": "float32", "status": "ok", "result": "output", "error": 1e-7,
             "tolerance": 2e-7, "reason": ""},
        ],
        "lost": "",
        "copy_bytes_per_second": 3e12,
        "bandwidth": [{"operator": "mixed_sum", "dtype": "float32", "bytes": 1 << 20, "seconds": 1e-6, "rate": 1e12,
                       "share": 0.9}],
    }  # fmt: skip
    (tmp_path / "doctor.json").write_text(json.dumps(found))
    benchmark = json.loads(one_pass.read_text())
    benchmark["kernels"] = {"darts: fastnas": gpu.top_kernels({"a|b": (2, 0.5)})}
    benchmark["groups"].append(benchmark["groups"][0] | {"method": "idarts", "reason": "no time was left"})
    (tmp_path / "benchmark.json").write_text(json.dumps(benchmark))
    text = gpu_report.markdown(gpu_report.collect(tmp_path))
    assert "| mixed_sum | float32 | 1.0e-07 | 2.0e-07 | output | ok |" in text
    assert "| cell | float32 | | | no kernel | missing |" in text
    assert "| mixed_sum | float32 | 1.0 | 1.0 | 1000 | 90% |" in text
    assert "A copy from device to device: 3000 GB/s" in text
    assert "### darts, 1 layers: forward-backward" in text
    assert "| fastnas, CUDA graphs | not available: needs a GPU |" in text
    assert "step (T = 4, K = 2)\n\nNot measured: no time was left." in text
    assert "| `a b` | 2 | 500.000 | 100% |" in text
    tables = [line for line in text.splitlines() if line.startswith("| fastnas ")]
    assert all(line.count("|") == 10 for line in tables)


# ---------------------------------------------------------------------------- the script

STUB = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
case "$*" in
  *bench.gpu_report*) exec REAL "$@" ;;
  *get_device_capability*) echo 9.0 ;;
  *"setup.py --quiet build_ext"*) exit ${BUILD:-0} ;;
  *fastnas.doctor*) echo '{"operators": []}'; exit ${DOCTOR:-0} ;;
  *pytest*) sleep ${TESTS:-0} ;;
  *bench.gpu*) echo "${TORCH_CUDA_ARCH_LIST}" ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """Runs bench/gpu_check.sh with stand-ins for nvidia-smi, Python and compute-sanitizer."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def tool(name, text):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    tool("nvidia-smi", "#!/bin/sh\necho 'NVIDIA Test 1, 580.1'\n")
    tool("python", STUB.replace("REAL", sys.executable))
    tool("compute-sanitizer", '#!/bin/sh\necho "sanitizer $*" >>"$CALLS"\n')
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "CALLS": str(tmp_path / "calls"),
    }
    environment.pop("TORCH_CUDA_ARCH_LIST", None)

    def run(*arguments, **variables):
        command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), *arguments]
        done = subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        return done, (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""

    run.tools = tools
    return run


def parts_of(folder):
    result = json.loads((folder / "nvidia-test-1.json").read_text())
    return {name: part["outcome"] for name, part in result["parts"].items()}


def test_the_script_runs_every_part(script, tmp_path):
    done, calls = script(str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert parts_of(tmp_path / "out") == dict.fromkeys(
        ["build", "doctor", "tests", "benchmark", "memcheck", "racecheck"], "passed"
    )
    order = [
        "setup.py --quiet build_ext --inplace",
        "fastnas.doctor --device cuda --json",
        "pytest -m gpu",
        "bench.gpu --out",
    ]
    places = [calls.index(word) for word in order]
    assert places == sorted(places)
    assert "--tool racecheck --kernel-name kns=fastnas" in calls
    assert "\n9.0\n" in done.stdout
    text = (tmp_path / "out" / "nvidia-test-1.md").read_text()
    assert "| build | passed |" in text
    assert "Not as expected, see the JSON file: KeyError('lost')." in text  # what the stand-in printed


def test_the_script_quickly(script, tmp_path):
    done, calls = script("--quick", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert parts_of(tmp_path / "out")["memcheck"] == "skipped"
    assert "fastnas.doctor --device cuda --json --quick" in calls
    assert "--methods forward-backward idarts" in calls


def test_what_fails_or_takes_too_long_leaves_the_rest(script, tmp_path):
    done, _ = script(str(tmp_path / "out"), DOCTOR="1", TESTS="60", SECONDS_IN_ALL="8")
    assert done.returncode == 1
    found = parts_of(tmp_path / "out")
    assert (found["build"], found["doctor"], found["tests"]) == ("passed", "failed", "cut off")
    assert found["benchmark"] == "cut off"  # no time was left


def test_nothing_runs_on_a_build_that_failed(script, tmp_path):
    done, calls = script(str(tmp_path / "out"), BUILD="3")
    assert done.returncode == 1
    assert parts_of(tmp_path / "out") == {"build": "failed"}
    assert "doctor" not in calls


def test_the_script_refuses_what_it_cannot_do(script, tmp_path):
    done, _ = script("--fast")
    assert (done.returncode, done.stderr) == (2, "usage: bench/gpu_check.sh [--quick] [FOLDER FOR RESULTS]\n")
    (script.tools / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    done, _ = script(str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (1, "error: nvidia-smi finds no GPU here\n")
