"""``python -m fastnas.report``."""

from fastnas.report.command import main

if __name__ == "__main__":
    main()
