"""``python -m fastnas.describe``."""

from fastnas.describe.command import main

if __name__ == "__main__":
    main()
