"""The one exception a user may meet: a sentence, not a traceback."""


class PallavaError(ValueError):
    """Bad input of the user's: the message says what was found, what was expected and what to do.

    Commands print the message after ``error:`` and exit with code 2.
    """


def without_worker(message: str) -> str:
    """Return an error's message alone: a data loader puts its worker's whole traceback before it."""
    message = message.strip()
    return message.splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in message else message
