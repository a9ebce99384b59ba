"""What fastnas raises for a user's mistake, and when it is told to end."""


class FastnasError(ValueError):
    """A user's mistake, told in one sentence: what is wrong, where, and what to do.

    The command lines print it as ``error: <sentence>`` and exit with status 2; from Python it is an
    ordinary ``ValueError``.
    """


class RepeatedError(FastnasError):
    """A mistake that another process of a data-parallel run tells: the command lines print it there alone."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has ended what ran, as Ctrl-C does; a command line exits with status 143 then."""
