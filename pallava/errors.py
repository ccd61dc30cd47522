"""The one exception a user may meet: a sentence, not a traceback."""


class PallavaError(ValueError):
    """Bad input of the user's: the message says what was found, what was expected and what to do.

    Commands print the message after ``error:`` and exit with code 2.
    """


def check_at_least(least: int, **options: int | None) -> None:
    """Check values of options by the options' names; None is not given.

    Raises:
        PallavaError: A value is smaller than `least`.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise PallavaError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def without_worker(message: str) -> str:
    """Return an error's message alone: a data loader puts its worker's whole traceback before it."""
    message = message.strip()
    return message.splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in message else message
