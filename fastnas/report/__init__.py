"""Reports: runs and their comparison as one HTML file each."""

from fastnas.report.command import main, write_report
from fastnas.report.page import page
from fastnas.report.read import Run, read_run

__all__ = ["Run", "main", "page", "read_run", "write_report"]
