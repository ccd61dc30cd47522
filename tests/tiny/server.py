"""A server of a tiny model, in a thread of the test's own process, and what one sends to it."""

import base64
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from pallava.serving.options import ServeOptions
from pallava.serving.server import Server


@contextmanager
def serving(model: Any, processor: Any, key: str | None = None, **options: Any) -> Iterator[str]:
    """The URL of a server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = Server(model, processor, "tiny", ServeOptions(**options), key)
        thread = threading.Thread(target=server.run, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.stop()
            thread.join(60)


def picture(number: int = 0) -> Image.Image:
    image = Image.linear_gradient("L").resize((70 + 20 * number, 50)).convert("RGB")
    return image.rotate(90 * (number % 4))


def data_url(image: Image.Image | bytes | int = 0) -> str:
    """A `data:` URL of a picture, of some bytes, or of the picture of a number."""
    image = picture(image) if isinstance(image, int) else image
    if isinstance(image, Image.Image):
        out = io.BytesIO()
        image.save(out, "PNG")
        image = out.getvalue()
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def ask(text: str, *images: Any) -> dict[str, Any]:
    """A user's message."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(text: str = "what is shown ?", *images: Any, **more: Any) -> dict[str, Any]:
    """A request."""
    return {"messages": [ask(text, *(images or (0,)))], "max_tokens": 6, **more}
