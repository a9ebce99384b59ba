"""A sweep's file: what it says is what runs, and what is wrong in it is said in a sentence."""

import pytest

from fastnas.errors import FastnasError
from fastnas.sweep.__main__ import main
from fastnas.sweep.description import read_sweep
from fastnas.sweep.document import parse
from fastnas.sweep.trials import points_of

FIXED = "search: {dataset: digits, epochs: 2}\n"


@pytest.fixture
def points(tmp_path):
    """``points(text, *overrides)``: options and seeds of every point of that file."""

    def read(text, *overrides):
        file = tmp_path / "file.yaml"
        file.write_text(FIXED + text)
        found = points_of(read_sweep(file, overrides))
        return [(point.options, [trial.config.run.seed for trial in point.trials]) for point in found]

    return read


def test_a_grid_is_every_combination_with_every_seed(points):
    found = points("grid: {inner_steps: [1, 2], neumann_terms: [0, 3]}\nseeds: [5, 7]")
    pairs = [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert found == [({"inner_steps": t, "neumann_terms": k}, [5, 7]) for t, k in pairs]


def test_grids_follow_each_other_and_what_they_share_runs_once(points):
    found = points("grid: [{inner_steps: [1, 4]}, {inner_steps: [4], gamma: [1e-2]}, {inner_steps: [4]}]")
    values = [(1, None), (4, None), (4, 0.01)]
    assert found == [({"inner_steps": t, "gamma": gamma}, [0]) for t, gamma in values]


def test_points_are_taken_with_every_combination_of_the_grid(points):
    found = points("grid: {method: [darts, idarts]}\npoints: [{eta: 0.5, momentum: 0.5}, {eta: 1.0}]")
    assert [tuple(options.values()) for options, _ in found] == [
        ("darts", 0.5, 0.5),
        ("darts", 1.0, 0.9),
        ("idarts", 0.5, 0.5),
        ("idarts", 1.0, 0.9),
    ]


def test_random_points_lie_where_they_should_and_are_the_same_again(points):
    text = """random:
  draws: 40
  seed: 3
  options: {gamma: {loguniform: [1e-3, 10]}, eta: {uniform: [1, 2]}, method: {choice: [cg, neumann]}}"""
    found = [options for options, _ in points(text)]
    assert found == [options for options, _ in points(text)]
    assert found != [options for options, _ in points(text.replace("seed: 3", "seed: 4"))]
    assert len(found) == 40
    assert all(1e-3 <= options["gamma"] <= 10 and 1 <= options["eta"] <= 2 for options in found)
    assert 10 <= sum(options["gamma"] < 0.1 for options in found) <= 30  # half of them by logarithm
    assert {options["method"] for options in found} == {"cg", "neumann"}


def test_every_trial_has_a_readable_name_of_its_own(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(
        f"search: {{dataset: npz}}\ngrid: {{data: [a/b, a+b, A+B, {'long' * 50}, {'long' * 51}]}}"
    )
    names = [trial.name for point in points_of(read_sweep(file)) for trial in point.trials]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name) < 150 and "/" not in name for name in names)
    file.write_text(FIXED + "grid: {inner_steps: [1], gamma: [1e-2]}\nseeds: [3]")
    assert points_of(read_sweep(file))[0].trials[0].name == "inner-steps-1_gamma-0.01_seed-3"


def test_overrides_stand_in_place_of_the_file(points):
    text = "grid: [{inner_steps: [1, 2]}, {gamma: [0.5], inner_steps: [3]}, {eta: [0.1]}]\nseeds: [0, 1]"
    found = points(text, "grid.inner_steps=[4]", "seeds=[9]", "epochs=1", "search.momentum=0.5")
    assert [(options["inner_steps"], seeds) for options, seeds in found] == [(4, [9]), (4, [9])]
    sweep = read_sweep("idarts-table-3", ("resources.gpus=0.5", "report=[val_loss]", "data=null"))
    assert (sweep.resources.gpus, sweep.report, sweep.search["data"]) == (0.5, ["val_loss"], None)


WRONG = {
    "grids: {eta: [1]}": "file.yaml: key 'grids' is unknown; known are search, grid",
    "grid: {etaa: [1]}": "file.yaml: grid has an unknown option 'etaa'; known are arch_learning_rate",
    "grid: {eta: 1}": "file.yaml: grid: eta must be a list, got 1",
    "grid: {eta: []}": "file.yaml: grid: eta is an empty list",
    "grid: {eta: [0.1, 0.1]}": "file.yaml: grid: eta has 0.1 twice",
    "grid: {eta: [a]}": "file, eta=a: option eta must be float, got 'a'",
    "grid: {eta: [-1]}": "file, eta=-1: --eta must be a finite number greater than 0, got -1.0",
    "grid: {method: [adams]}": "file, method=adams: unknown hypergradient method 'adams'",
    "grid: {seed: [1]}": "file.yaml: grid must not have seed: seeds: [0, 1, 2] is the list",
    "grid: {epochs: [1]}": "file.yaml: search and grid both have epochs",
    "grid: {}": "file.yaml: grid is empty",
    "grid: []": "file.yaml: grid is an empty list",
    "grid: [[1]]": "file.yaml: grid must map options",
    "points: {eta: 1}": "file.yaml: points must be a list",
    "points: [{eta: 1}, {eta: 1}]": "file.yaml: points has {'eta': 1} twice",
    "points: [{eta: 1}]\ngrid: {eta: [1]}": "file.yaml: grid and points both have eta",
    "seeds: 3": "file.yaml: seeds must be a list, got 3",
    "seeds: [0, 0]": "file.yaml: seeds has 0 twice",
    "seeds: [true]": "file.yaml: seeds must be whole numbers",
    "seeds: [-1]": "file.yaml: seeds must be whole numbers of at least 0",
    "resources: {gpu: 1}": "file.yaml: resources may have the keys cpus and gpus",
    "resources: {gpus: 2}": "file.yaml: resources: gpus must be from 0 to 1",
    "resources: {cpus: 0}": "file.yaml: resources: cpus must be a whole number of at least 1, got 0",
    "report: [genotype]": "file: report has 'genotype', which these searches do not measure; they do train_loss",
    "report: [table.cifar10.test]": "file: report has 'table.cifar10.test', which",
    "report: [1]": "file.yaml: report must be a list of names of metrics, got 1",
    "random: {draws: 1}": "file.yaml: random must have the keys draws and options",
    "random: {draws: 0, options: {eta: {choice: [1]}}}": "file.yaml: random: draws must be a whole number",
    "random: {draws: 1, options: {eta: {normal: [0, 1]}}}": "file.yaml: random: eta must be one of choice",
    "random: {draws: 1, options: {eta: {loguniform: [0, 1]}}}": "file.yaml: random: eta must have two numbers above 0",
    "random: {draws: 1, options: {eta: {uniform: [1, 1]}}}": "file.yaml: random: eta must have two numbers",
    "grid: {eta: [1]}\ngrid: {eta: [2]}": "file.yaml, line 1: key 'grid' is there twice",
    "a: &x [1]\nb: *x": "file.yaml, line 3: aliases (*name) are not read",
    "a: !!python/name:os.system": "file.yaml, line 2: could not determine a constructor",
    "? [a]\n: 1": "file.yaml, line 1: key ['a'] is no word",
    "a: [": "file.yaml, line 2: expected the node content",
    "seeds: ["
    + ",".join(map(str, range(101)))
    + "]\ngrid: {eta: ["
    + ",".join(map(str, range(1, 101)))
    + "]}": ("file: 10,100 searches are more than the 10,000"),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.items(), ids=range(len(WRONG)))
def test_what_is_wrong_is_said(tmp_path, capsys, text, sentence):
    file = tmp_path / "file.yaml"
    file.write_text(FIXED + text)
    with pytest.raises(SystemExit, match="2"):
        main([str(file), "--dry-run"])
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1


OVERRIDES = {
    "epochs": "--override epochs must be KEY=VALUE",
    "epoch=1": "file.yaml: search has an unknown option 'epoch'",
    "grids.eta=1": "--override grids.eta=1: unknown key 'grids'",
    "grid.gamma=[1]": "--override grid.gamma=[1]: grid has no gamma",
    "inner_steps=1": "--override inner_steps=1: the sweep varies inner_steps; take --override grid.inner_steps=[VALUE]",
    "seeds=[": "--override seeds=[, line 1: ",
    "seeds.a=1": "--override seeds.a=1: seeds has no a",
}


@pytest.mark.parametrize(("override", "sentence"), OVERRIDES.items(), ids=range(len(OVERRIDES)))
def test_an_override_that_fits_nothing_is_said(tmp_path, override, sentence):
    file = tmp_path / "file.yaml"
    file.write_text(FIXED + "grid: [{inner_steps: [1]}, {inner_steps: [2]}]\nseeds: [0]")
    with pytest.raises(FastnasError) as caught:
        read_sweep(file, (override,))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(sentence)


def test_a_file_that_is_none_is_said(tmp_path):
    with pytest.raises(
        FastnasError, match="no sweep file nowhere, and no paper's sweep of that name; there are amended"
    ):
        read_sweep("nowhere")
    with pytest.raises(FastnasError, match="cannot be read: Is a directory"):
        read_sweep(tmp_path)
    file = tmp_path / "file.yaml"
    for content, sentence in (
        (b"\xff\xff", "is no YAML"),
        (b"[1]", "is no sweep: it must have the keys"),
        (b"[" * 5000, "nested too deeply"),
        (b"#" * (1 << 20) + b"#", "larger than 1,048,576 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(FastnasError, match=sentence):
            read_sweep(file)


def test_numbers_and_words_are_those_of_yaml_1_2():
    text = "[1e-3, 3e4, .5, -2, 010, off, yes, true, null, ~, 2026-01-01, 1_000, .inf, '1']"
    value = [1e-3, 3e4, 0.5, -2, 10, "off", "yes", True, None, None, "2026-01-01", "1_000", ".inf", "1"]
    assert [(type(a), a) for a in parse(text, "text")] == [(type(b), b) for b in value]


def test_a_trial_takes_its_threads_and_device_from_the_resources(tiny):
    config = points_of(tiny(resources={"cpus": 3}))[0].trials[0].config
    assert (config.run.threads, config.run.device) == (3, "cpu")
    config = points_of(tiny(resources={"gpus": 0.5}, search={"threads": 2}))[0].trials[0].config
    assert (config.run.threads, config.run.device) == (2, "auto")
    with pytest.raises(FastnasError, match=r"tiny: --device cuda needs a GPU, and resources: gpus is 0"):
        points_of(tiny(search={"device": "cuda"}))
