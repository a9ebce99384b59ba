"""The page: what is on it, that it is the same each time, and that nothing in a run's folder makes it do anything."""

import base64
import hashlib
import json
import re

import pytest

from fastnas.report import page, read_run
from fastnas.report.page import script_of_page, style_of_page
from tests.report.pages import Page
from tests.report.runs import write_retraining, write_search

EVIL = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${{7*7}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A search of four epochs, and what its alphas were."""
    path = tmp_path_factory.mktemp("report") / "run"
    return path, write_search(path)


@pytest.fixture(scope="module")
def html(folder):
    return page([read_run(folder[0])])


@pytest.fixture(scope="module")
def found(html):
    return Page(html)


def test_the_same_run_gives_the_same_page(folder, html):
    assert page([read_run(folder[0])]) == html


def test_it_is_one_file(html, found):
    """No link, picture, font or script from elsewhere, and no style or handler of an element."""
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", html)
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert (len(found.texts["script"]), len(found.texts["style"])) == (1, 1)


def test_its_policy_names_its_own_script_and_style_alone(found):
    (policy,) = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(found.texts[kind][0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "connect-src" not in policy


def test_identifiers_are_there_once(found):
    idents = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(idents)) == len(idents)
    for _, attributes in found.elements:
        for ident in (attributes.get("aria-labelledby") or "").split():
            assert ident in idents


def test_every_chart_says_what_it_shows(found):
    charts = [a for a in found.all("svg") if a["class"] == "chart"]
    assert len(charts) > 10
    assert all(a["role"] == "img" for a in charts)
    assert (
        "validation: first 2.2000 (epoch 1), last 0.5500 (epoch 4), lowest 0.5500 (epoch 4), highest 2.2000"
        in found.text
    )


def test_headings_leave_no_level_out(folder, found):
    run = read_run(folder[0])
    for tags in (found, Page(page([run, run]))):
        levels = [int(tag[1]) for tag, _ in tags.elements if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))


def test_the_script_knows_the_cells_of_every_epoch(folder, found):
    """Drawings, weights and figures of an epoch in the payload are those of the run."""
    run, payload = read_run(folder[0]), found.payload()
    assert payload["epochs"] == [1, 2, 3, 4]
    for i, (epoch, genotype) in enumerate(zip(run.epochs, run.genotypes, strict=True)):
        assert payload["texts"][payload["genotypes"][i]] == str(genotype)
        for slot, graph in enumerate(genotype.graphs()):
            drawing = payload["wide"][payload["cells"][i][slot]]
            for source, target, op in graph.edges:
                if op:
                    assert f"{graph.labels[source]} → {graph.labels[target]}: {op}" in drawing
            source, target, op = graph.edges[0]
            alpha = run.alphas[epoch][graph.name].softmax(-1)
            row = run.space.stages[1].edges.index(
                next(e for e in run.space.stages[1].edges if (e.source, e.target) == (source, target))
            )
            column = run.space.alphas[0].primitives.index(op)
            assert payload["weights"][i][slot][0][0] == pytest.approx(alpha[row, column].item(), abs=0.00051)
    assert payload["readout"][2][1] == f"{2.2 / 3:.4f}"


def test_every_readout_of_a_chart_has_its_numbers(found):
    payload = found.payload()
    outputs = [a for a in found.all("output") if "data-chart" in a]
    assert outputs
    for a in outputs:
        chart = payload["charts"][a["data-chart"]]
        assert len(chart["curves"][int(a["data-curve"])]) == len(chart["epochs"])
    assert payload["charts"]["r1-loss"]["curves"][1] == ["2.2000", "1.1000", "0.7333", "0.5500"]


def test_how_to_make_it_again(found):
    assert "python -m fastnas.search --space darts --dataset digits --method idarts --epochs 4" in found.text
    assert "0123abc" in found.text


def test_nothing_in_a_folder_runs(tmp_path):
    """Every text of a run is text: the page has the elements that the same run without evil has."""
    folders = {}
    for name, text in (("plain", "plain"), ("evil", EVIL)):
        path = tmp_path / name / re.sub("/", "", text)
        write_search(
            path, epochs=2, row={text: 1.0, "audit_against": text, "table": {text: {"val": 1.0, "test": 2.0}}}
        )
        content = json.loads((path / "config.json").read_text())
        content["config"] |= {"dataset": text, text: text, "primitives": [text], "method": text}
        content["provenance"] = {"arguments": [text], text: text, "commit": text}
        (path / "config.json").write_text(json.dumps({**content, "torch": text}))
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": 3, "genotype": text}) + "\n" + text)
        folders[name] = Page(page([read_run(path), read_run(path)]))
    plain, evil = folders["plain"], folders["evil"]
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in plain.elements]
    assert "alert(1)" in evil.text
    assert evil.texts["script"] == plain.texts["script"] == [script_of_page(False)]
    assert evil.texts["style"] == plain.texts["style"] == [style_of_page()]


def test_a_genotype_of_ones_own_space_is_text(tmp_path):
    """A choice of primitives may call them anything."""
    write_search(tmp_path / "run", epochs=1, alphas=False)
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["config"]["space"] = "my own"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    choice = json.dumps({"space": "my own", "edges": {EVIL: [[0, 1, EVIL]]}})
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps({"epoch": 1, "genotype": choice}) + "\n")
    (tmp_path / "run/genotype.json").write_text(choice)
    found = Page(page([read_run(tmp_path / "run")]))
    assert len(found.texts["script"]) == 1
    assert not found.all("img")
    drawing = Page(found.payload()["wide"][0])
    assert {tag for tag, _ in drawing.elements} <= {
        "svg",
        "title",
        "desc",
        "path",
        "polygon",
        "g",
        "rect",
        "text",
        "tspan",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"space": "nasbench201", "row": {"table": {"cifar10": {"val": 90.0, "val_regret": 1.6}}}},
        {"space": "nasbench1shot1-1"},
        {"space": "s2", "layers": 3},
        {"space": "recurrent", "dataset": "ptb", "data": "/nowhere"},
    ],
)
def test_other_spaces(tmp_path, options):
    write_search(tmp_path / "run", epochs=2, **options)
    found = Page(page([read_run(tmp_path / "run")]))
    cells = len(read_run(tmp_path / "run").genotype.graphs())
    assert len([a for a in found.all("figure") if a["class"] == "cell"]) == cells
    assert "Alpha over the epochs" in found.text
    assert all(weights is not None for row in found.payload()["weights"] for weights in row)
    assert ("Regret in the table, CIFAR-10" in found.text) == ("row" in options)


def test_a_retraining(tmp_path):
    write_retraining(tmp_path / "run")
    found = Page(page([read_run(tmp_path / "run")]))
    assert "best test accuracy 60.00 % epoch 3" in found.text
    assert "parameters 1234" in found.text
    assert "Alpha over the epochs" not in found.text


def test_a_run_without_an_epoch(tmp_path):
    write_search(tmp_path / "run", epochs=1)
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/genotype.json").unlink()
    found = Page(page([read_run(tmp_path / "run")]))
    assert "No epoch has ended yet" in found.text
    assert found.payload()["epochs"] == []


def test_a_single_epoch(tmp_path):
    write_search(tmp_path / "run", epochs=1)
    html = page([read_run(tmp_path / "run")])
    charts = [a for a in Page(html).all("svg") if a["class"] == "chart"]
    assert {(a["data-first"], a["data-last"]) for a in charts} == {("0.5", "1.5")}
    paths = [a["d"] for a in Page(html).all("path")]
    assert paths
    assert not any(re.search("nan|inf", d) for d in paths)


def test_a_stopped_run_says_how_far_it_came(tmp_path):
    write_search(tmp_path / "run", epochs=3)
    content = json.loads((tmp_path / "run/config.json").read_text())
    content["config"]["epochs"] = 50
    (tmp_path / "run/config.json").write_text(json.dumps(content))
    assert "epochs 3 of 50" in Page(page([read_run(tmp_path / "run")])).text


def test_many_runs_are_compared_and_their_charts_left_to_their_own_reports(tmp_path):
    for seed in range(9):
        write_search(tmp_path / str(seed), epochs=1, seed=seed, alphas=False)
    found = Page(page([read_run(tmp_path / str(seed)) for seed in range(9)]))
    assert "Which cells agree" in found.text
    assert not found.all("figure", id="r1-loss")
    assert f"python -m fastnas.report {tmp_path / '3'}" in found.text
