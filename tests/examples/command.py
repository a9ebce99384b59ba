"""What the examples' tests share."""


def last_line(capsys) -> str:
    """The last line that was printed."""
    return capsys.readouterr().out.strip().splitlines()[-1]
