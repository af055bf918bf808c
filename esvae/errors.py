"""The one exception that a user's mistake raises; the command line turns it into one line and exit code 2."""


class InputError(ValueError):
    """Something from outside (a file, a folder, an option) cannot be used; the message is one line and names it."""


class TellsRankZero(InputError):
    """The InputError of rank 0, raised on the other ranks as well: it is rank 0 that tells it."""
