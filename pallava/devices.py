"""Where a command computes."""

from pallava.errors import PallavaError


def find_device(name: str, local_rank: int = 0) -> str:
    """The device of that name; of "auto" a GPU if there is one, of several processes to each its own.

    Raises:
        PallavaError: There is no such device.
    """
    import torch

    if name == "auto":
        return f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise PallavaError(f"there is no device {name!r} here ({str(error).splitlines()[0]})") from None
    return name
