"""Errors that the command line reports in one line, without a traceback."""


class UserError(Exception):
    """An error that the user can correct. The message is one line: what is wrong and what to do. Exit status 2."""


class Preempted(Exception):
    """The process was asked to stop and has saved its state. The same command continues. Exit status 75."""
