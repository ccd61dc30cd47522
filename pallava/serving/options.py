"""Options of a server; the command line reads them without what a server imports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pallava.images import MAX_PIXELS

KEY_VARIABLE = "PALLAVA_API_KEY"


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server, each with its help text."""

    host: Annotated[str, f"address to listen on; another than loopback demands a key in {KEY_VARIABLE}"] = "127.0.0.1"
    port: Annotated[int, "port; 0 takes a free one"] = 8000
    name: Annotated[str | None, "name of the model in the API (default: the folder's)"] = None
    max_batch: Annotated[int, "requests that are answered at once"] = 16
    max_waiting: Annotated[int, "requests that wait; more are refused"] = 64
    max_new_tokens: Annotated[int, "largest and default number of tokens of an answer"] = 512
    max_images: Annotated[int, "largest number of images in a conversation"] = 16
    max_pixels: Annotated[int, "largest number of pixels of an image"] = MAX_PIXELS
    max_mb: Annotated[int, "largest size of a request in MB"] = 32
    timeout: Annotated[int, "seconds from a request to the end of its answer, which is cut there"] = 300
    allow_url: Annotated[
        Sequence[str],
        "host of which images may be fetched; never one on a private network (repeatable)",
        {"metavar": "HOST"},
    ] = ()
    engine: Annotated[
        str | None, "URL of a server on this machine that runs the language model, such as http://127.0.0.1:8001/v1"
    ] = None
    base_llm: Annotated[
        str | None, "base language model of a folder with an adapter (default: the one it was trained on)"
    ] = None
    load_in_4bit: Annotated[bool, "language model in 4 bit: a quarter of the memory, other answers; slow on a CPU"] = (
        False
    )
    trust_remote_code: Annotated[
        bool, "permission to import the module of a connector that does not come with pallava (default: refuse)"
    ] = False
    device: Annotated[str, "device: auto, cpu, cuda or cuda:N"] = "auto"
