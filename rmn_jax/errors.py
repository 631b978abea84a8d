"""The one exception that the command line turns into a line on stderr and exit status 2."""


class UserError(Exception):
    """Something the user can put right: the message is one line that says what is wrong and what to do."""


class Preempted(Exception):
    """The process was asked to stop and has saved its state: exit status 75, start again to go on."""
