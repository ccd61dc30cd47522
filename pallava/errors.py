"""The one exception a user may meet: a sentence, not a traceback."""


class PallavaError(ValueError):
    """Bad input of the user's: the message says what was found, what was expected and what to do.

    Commands print the message after ``error:`` and exit with code 2.
    """
