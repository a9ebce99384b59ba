"""What the results of searches and retrainings share."""

from __future__ import annotations

from pathlib import Path


class Result:
    """What a run ends with.

    Attributes:
        out: the run's folder.
    """

    out: Path

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the run's report, one HTML file, and says where it is.

        Args:
            path: the file; None: report.html in the run's folder.

        Raises:
            FastnasError: ``path`` cannot be written.
        """
        from fastnas.report import write_report  # here: it draws with matplotlib, which takes its time

        return write_report([self.out], path)
