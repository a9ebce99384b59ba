"""``python -m fastnas.audit``: how wrong is each hypergradient on this supernet?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastnas._command import clear_errors, flag_value
from fastnas._imports import IMPORT_HELP, take_imports
from fastnas.audit.config import AuditConfig, defaults_of
from fastnas.audit.folder import AuditFolder
from fastnas.audit.report import table
from fastnas.audit.run import audit
from fastnas.audit.state import stored_config

DESCRIPTION = f"""How wrong every hypergradient is on one state of your supernet, and what it costs: cosine and error
against references with exact second-order products, differences of every radius, the Neumann series against its
bound, the reverse modes' memory. Without arguments: a small DARTS supernet on scikit-learn's digits.
{IMPORT_HELP}"""


@clear_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags, audits, prints the tables or JSON."""
    import tyro  # here: Ctrl-C during its 0.2 s leaves no traceback either

    arguments = take_imports(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(
        AuditConfig,
        prog="python -m fastnas.audit",
        description=DESCRIPTION,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    with AuditFolder.of(config) as folder:
        result = audit(config, progress=True)
        text = table(result)
        folder.save(result, text)
    print(json.dumps(result, indent=2) if config.audit.json else f"{text}\n\naudit:    {folder.path}")


def _defaults(arguments: list[str]) -> AuditConfig:
    """What a flag that is not given means: the audited run's value, or the ordinary default."""
    checkpoint = flag_value(arguments, "--checkpoint")
    if checkpoint in (None, "None"):
        return AuditConfig()
    folder = Path(str(checkpoint))
    return defaults_of(stored_config(folder).to_options(), folder)


if __name__ == "__main__":
    main()
