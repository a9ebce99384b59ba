"""Writes a few cells in the layouts in which NAS-Bench-201 and NATS-Bench are published."""

import bz2
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

CELLS = (
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
)
# what is trained on -> what is evaluated on
SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("ori-test", "x-valid", "x-test"),
    "ImageNet16-120": ("ori-test", "x-valid", "x-test"),
}
COLUMNS = {
    ("cifar10-valid", "x-valid"): "cifar10_val",
    ("cifar10", "ori-test"): "cifar10_test",
    ("cifar100", "x-valid"): "cifar100_val",
    ("cifar100", "x-test"): "cifar100_test",
    ("ImageNet16-120", "x-valid"): "imagenet16_val",
    ("ImageNet16-120", "x-test"): "imagenet16_test",
}
PER_EPOCH = {"cifar10-valid": 7.25, "cifar10": 14.5, "cifar100": 14.5, "ImageNet16-120": 44.0}


def benchmark(names=("less", "full"), cells=CELLS):
    """The dictionary of a whole file, and the columns that a reader must find in it."""
    draw = np.random.default_rng(0)
    infos, columns = {}, {}
    for index, arch in enumerate(cells):
        trainings = OrderedDict()
        for name, epochs in zip(names, (12, 200), strict=True):
            seeds = {data: [777, 888][: 1 + (index + place) % 2] for place, data in enumerate(SETS)}
            results = {}
            for data, sets in SETS.items():
                for seed in seeds[data]:
                    results[data, seed] = _run(draw, arch, data, sets, seed, epochs)
            for (data, split), column in COLUMNS.items():
                found = [results[data, seed]["eval_acc1es"][f"{split}@{epochs - 1}"] for seed in seeds[data]]
                columns.setdefault(f"{column}{epochs}", []).append(np.mean(found))
            trainings[name] = {
                "arch_index": index,
                "arch_str": arch,
                "all_results": results,
                "dataset_seed": seeds,
                "clear_net_done": True,
            }
        infos[index] = trainings
        for data, column in (
            ("cifar10", "cifar10"),
            ("cifar100", "cifar100"),
            ("ImageNet16-120", "imagenet16"),
        ):
            run = next(run for key, run in trainings[names[1]]["all_results"].items() if key[0] == data)
            columns.setdefault(f"{column}_params", []).append(round(1e6 * float(run["params"])))
            columns.setdefault(f"{column}_mflops", []).append(run["flop"])
            timed, title = ("cifar10-valid", "cifar10valid") if data == "cifar10" else (data, column)
            columns.setdefault(f"{title}_train_s_200ep", []).append(200 * PER_EPOCH[timed])
    content = {
        "meta_archs": list(cells),
        "total_archs": len(cells),
        "basestr": "C16-N5",
        "arch2infos": infos,
        "evaluated_indexes": set(infos),
    }
    return content, columns


def _run(draw, arch, data, sets, seed, epochs):
    keys = [f"{name}@{epoch}" for name in sets for epoch in range(epochs)]
    by_epoch = [{epoch: float(draw.uniform(0, 100)) for epoch in range(epochs)} for _ in range(3)]
    head = {"cifar100": 5850, "ImageNet16-120": 7150}.get(data, 0)
    parameters = 73306 + head + 28000 * arch.count("nor_conv_1x1")
    return {
        "name": data,
        "net_state_dict": None,
        "train_acc1es": by_epoch[0],
        "train_acc5es": by_epoch[1],
        "train_losses": by_epoch[2],
        "train_times": OrderedDict((epoch, PER_EPOCH[data]) for epoch in range(epochs)),
        "arch_config": {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": 10},
        "params": np.float64(parameters / 1e6),
        "flop": 15.64737,
        "seed": seed,
        "epochs": epochs,
        "latency": [0.0139],
        "eval_names": list(sets),
        "eval_acc1es": {key: float(draw.uniform(0, 100)) for key in keys},
        "eval_times": dict.fromkeys(keys, 0.5),
        "eval_losses": {key: float(draw.uniform(0, 3)) for key in keys},
    }


def write_pth(path: Path, content, legacy: bool) -> Path:
    """As ``torch.save`` writes it now, or wrote it until 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_pbz2(path: Path, content) -> Path:
    """As NATS-Bench's ``pickle_save`` does."""
    with bz2.BZ2File(path, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return path


def write_folder(path: Path, content) -> Path:
    """NATS-Bench's folder: a file with all but the results, and a file for each cell."""
    path.mkdir()
    write_pbz2(path / "meta.pickle.pbz2", content | {"arch2infos": None, "evaluated_indexes": set()})
    for index, info in content["arch2infos"].items():
        write_pbz2(path / f"{index:06d}.pickle.pbz2", info)
    return path
