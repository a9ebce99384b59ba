"""Targets: the flags of the command lines. What they would start is not started; everything before it is checked."""

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from unittest import mock

from fastnas.errors import FastnasError
from fastnas.retrain.folder import RetrainFolder
from fastnas.search.folder import RunFolder
from tests.fuzz.tables import _table
from tests.fuzz.target import Target, place, text

# By import_module: the packages give functions the names of modules.
search_command, retrain_command, audit_command, describe_command, tables_command = (
    import_module(f"fastnas.{name}")
    for name in ("search.__main__", "retrain.__main__", "audit.__main__", "describe", "tables.__main__")
)


def _started(config, folder: type[RunFolder] | type[RetrainFolder]) -> None:
    """What a run does before it reads data."""
    folder.for_config(config.resolved())
    raise FastnasError("as far as it goes")


def _audited(config) -> None:
    config.search()
    raise FastnasError("as far as it goes")


def _command(main: Callable[[list[str]], None], *patches: mock._patch) -> Callable[[bytes], None]:
    """``main`` on a line of flags, quoted as a shell has it: status 0, 1 or 2, and no traceback."""

    def run(content: bytes) -> None:
        try:
            arguments = shlex.split(text(content))
        except ValueError:
            arguments = text(content).split()
        with contextlib.ExitStack() as stack, _captured() as error:
            for patch in patches:
                stack.enter_context(patch)
            try:
                main(arguments)
                status: object = 0
            except SystemExit as ended:
                status = ended.code or 0
        said = error.getvalue().decode()
        assert status in (0, 1, 2), status
        assert status == 0 or said.strip(), "a refusal without words"
        assert "Traceback" not in said, said

    return run


@contextlib.contextmanager
def _captured() -> Iterator[io.BytesIO]:
    """Standard output and error as a terminal has them: the first is strict about what UTF-8 cannot say."""
    out, error = io.BytesIO(), io.BytesIO()
    streams = (io.TextIOWrapper(out, "utf-8"), io.TextIOWrapper(error, "utf-8", "backslashreplace"))
    with mock.patch.object(sys, "stdout", streams[0]), mock.patch.object(sys, "stderr", streams[1]):
        yield error
        for stream in streams:
            stream.detach()  # flushes, and leaves what was written


def _lines(*lines: str) -> Callable[[], list[bytes]]:
    return lambda: [line.encode() for line in lines]


def _table_lines() -> list[bytes]:
    table = place("queried.npz")
    table.unlink(missing_ok=True)
    _table().save(table)
    cell = '{"matrix": [[0, 1], [0, 0]], "operations": ["input", "output"]}'
    return [
        f"nasbench101 --file {table} --top 2 --json --split test".encode(),
        f"nasbench101 --file {table} --arch '{cell}'".encode(),
        f"nasbench201 --file {table} --genotype /nowhere --dataset cifar100".encode(),
        f"convert --from {table} --out /nowhere/x.npz".encode(),
    ]


_search = mock.patch.object(search_command, "run_search", lambda config, **_: _started(config, RunFolder))
_retrain = mock.patch.object(
    retrain_command, "run_retrain", lambda config, **_: _started(config, RetrainFolder)
)
_audit = mock.patch.object(audit_command, "AuditFolder", mock.Mock(of=_audited))
_TOKENS = (
    *(
        b" --help",
        b" --",
        b" -",
        b" --out",
        b" --resume",
        b" --space",
        b"=",
        b" ''",
        b" '\x00'",
        b"\xff",
        b"\xed\xa0\x80",
        b"\n",
    ),
    *(
        b"9" * 400,
        b"9" * 4400,
        b"-1",
        b"nan",
        b"inf",
        b"1e999",
        b"0x10",
        b"None",
        b"auto",
        b"~nobody-of-this-name/x",
        b"x" * 5000,
    ),
    *(
        b"/dev/null/x",
        b"/proc/self/mem",
        b"..",
        b" --channels 65537",
        b" --layers 99999999999999999999",
        b"True",
        b" @x",
        b"s2",
    ),
)
TARGETS = (
    Target(
        "command-search",
        _command(search_command.main, _search),
        _lines(
            "--space darts --method idarts --channels 4 --layers 3 --epochs 2 --seed 1 --device cpu",
            "--dataset cifar10 --data /nowhere --learning-rate 0.1 --difference-radius auto --out /nowhere/a",
            "--space s2 --primitives skip_connect none --grad-clip inf --momentum nan",
            "--resume /nowhere --out /nowhere",
            "--space recurrent --dataset ptb --bptt 3 --dropout 0.5 --threads 1",
        ),
        _TOKENS,
    ),
    Target(
        "command-retrain",
        _command(retrain_command.main, _retrain),
        _lines(
            "--genotype DARTS_V2 --recipe cifar --epochs 2 --drop-path 0.2 --compile off",
            "--genotype '|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|' --dataset folder --data /nowhere",
            "--genotype /dev/null/x --out /nowhere",
            "--resume --out /nowhere",
        ),
        _TOKENS,
    ),
    Target(
        "command-audit",
        _command(audit_command.main, _audit),
        _lines(
            "--quick --minibatches 2 --reference-damping 0.1",
            "--checkpoint /nowhere",
            "--warm-up-steps 3 --json",
        ),
        _TOKENS,
    ),
    Target(
        "command-describe",
        _command(describe_command.main),
        _lines(
            "--space nasbench201 --channels 2 --layers 1 --json",
            "--genotype DARTS_V2 --dot",
            "--genotype ENAS --draw /nowhere/cells.svg",
            "--space recurrent --channels 8 --classes 9",
            "--space nasbench201 --layers 1 --image-size 8 --image-channels 1",
        ),
        _TOKENS,
    ),
    Target("command-tables", _command(tables_command.main), _table_lines, _TOKENS),
)
