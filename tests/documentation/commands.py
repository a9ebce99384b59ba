"""A command line of a page: run, or only parsed and checked as its program would."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import tyro

from fastnas import FastnasError
from fastnas.audit.config import AuditConfig
from fastnas.describe.command import DescribeConfig
from fastnas.describe.memory import OfRetraining, OfSearch
from fastnas.retrain import RetrainConfig
from fastnas.search import SearchConfig
from fastnas.spaces import family, find_genotype
from tests.documentation.blocks import Command


class Parsed(Exception):
    """The program's parser has its configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__("parsed")
        self.config = config


def run(command: Command, more: list[str], place: str) -> None:
    """Runs it in this process as the shell would; it must end well."""
    assert not command.launched, f"{place}: torchrun is parsed, and not run"
    arguments = [*command.arguments, *more]
    main = _script(command.module) if command.module.endswith(".py") else _main(command)
    status = _status(main, arguments)
    assert not status, f"{place}: {command} ended with status {status}"


def check(command: Command, place: str) -> None:
    """Parses it by its program's own parser: no unknown flag, no value that it would refuse without a file."""
    if not command.ours:
        return
    with pytest.MonkeyPatch.context() as patch:
        _stop_behind_parsing(patch, command)
        try:
            status = _status(_main(command), list(command.arguments))
        except Parsed as parsed:
            check_config(parsed.config, f"{place}: {command}")
        else:  # --help, or a program without flags
            known = set(command.arguments) <= {"--help"}
            assert not status, f"{place}: {command} is refused, see the standard error"
            assert known, f"{place}: {command.module} takes no arguments"


def _status(main: Any, arguments: list[str]) -> Any:
    """Of the exit; None: well."""
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    return None


def _script(file: str) -> Any:
    def main(arguments: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [file, *arguments])
            runpy.run_path(file, run_name="__main__")

    return main


def _main(command: Command) -> Any:
    spec = importlib.util.find_spec(command.module)
    assert spec is not None, f"there is no module {command.module}"
    package = spec.submodule_search_locations is not None
    module = importlib.import_module(f"{command.module}.__main__" if package else command.module)
    return module.main if hasattr(module, "main") else _without_flags(command.module)


def _without_flags(module: str) -> Any:
    def main(arguments: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it is imported already, and runs again
            runpy.run_module(module, run_name="__main__")

    return main


def _stop_behind_parsing(patch: pytest.MonkeyPatch, command: Command) -> None:
    def stopping(parse: Any) -> Any:
        def parsed(*arguments: Any, **options: Any) -> Any:
            raise Parsed(parse(*arguments, **options))

        return parsed

    with_commands = tyro.extras.subcommand_cli_from_dict
    patch.setattr(tyro, "cli", stopping(tyro.cli))
    patch.setattr(tyro.extras, "subcommand_cli_from_dict", stopping(with_commands))
    module = sys.modules.get(_main(command).__module__)
    if module is not None and hasattr(module, "_defaults"):  # those of a run that the page only names
        defaults = module._defaults([])
        patch.setattr(module, "_defaults", lambda arguments: defaults)


def check_config(config: Any, place: str) -> None:
    """Its program would begin, as far as that can be said before anything is read."""
    try:
        _check_values(config)
    except FastnasError as error:
        raise AssertionError(f"{place}: {error}") from error


def _check_values(config: Any) -> None:
    if isinstance(config, (OfSearch, OfRetraining)):
        config = config.run
    if isinstance(config, SearchConfig):
        config.resolved()
    elif isinstance(config, AuditConfig):
        config.search()
    elif isinstance(config, RetrainConfig):
        _known(config).resolved()
    elif isinstance(config, DescribeConfig) and config.space is not None:
        family(config.space, config.primitives)


def _known(config: RetrainConfig) -> RetrainConfig:
    """The same with a genotype that is here, where the page only names a run."""
    try:
        find_genotype(str(config.network.genotype), config.network.space)
    except FastnasError:
        recipe = config.network.recipe or ""
        known = "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
        genotype = known if recipe.startswith("nasbench201") else "DARTS_V2"
        return replace(config, network=replace(config.network, genotype=genotype))
    return config
