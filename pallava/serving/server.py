"""A server on this machine: a model folder behind OpenAI's API, with a page."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from pallava.devices import find_device
from pallava.errors import PallavaError, check_at_least
from pallava.io.hosts import is_loopback
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor, load
from pallava.serving.api import Api
from pallava.serving.bounds import Bounds, Connection
from pallava.serving.chat_model import ChatModel
from pallava.serving.engine import EngineModel, check_is_here
from pallava.serving.metrics import Metrics
from pallava.serving.options import KEY_VARIABLE, ServeOptions
from pallava.serving.scheduler import Scheduler

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_BODIES_AT_ONCE = 8  # of the largest size, of all requests together
_SPARE = 16  # requests beyond those that wait or are answered: for those that are still read, and /metrics
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The page is one file; it may talk to its own server, and to nothing else.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def serve(folder: str | Path, log: Callable[[str], Any] = lambda line: None, **options: Any) -> None:
    """Serve a model folder until the process is asked to end; running answers are finished first.

    Args:
        folder: Output of ``pallava convert``.
        log: Called with the line that says where the server is, once it takes requests.
        **options: Fields of `ServeOptions`.

    Raises:
        PallavaError: The folder or an option cannot be used, the port is taken, or a key is missing.
    """
    given = ServeOptions(**options)
    _check(given)
    key = os.environ.get(KEY_VARIABLE)
    if not key and not is_loopback(given.host):
        raise PallavaError(
            f"with --host {given.host} other machines reach the server, so the variable {KEY_VARIABLE} must have a key "
            "for them; set it, or leave --host out"
        )
    with _listen(given.host, given.port) as listener:  # before the model, which takes its time
        device = find_device(given.device)
        # The layers of a language model that runs elsewhere are never put on the device.
        place = "cpu" if given.engine else device
        names = ("base_llm", "load_in_4bit", "trust_remote_code")
        model, processor = load(folder, place, **{name: getattr(given, name) for name in names})
        server = Server(model, processor, given.name or Path(folder).resolve().name, given, key)
        model.to(device)  # type: ignore[arg-type]
        listener.listen()
        host = f"[{given.host}]" if ":" in given.host else given.host
        log(f"serving {server.name} at http://{host}:{listener.getsockname()[1]}/ (Ctrl-C ends it)")
        server.run(listener)


class Server:
    """A server of one model.

    Args:
        model: The first that `pallava.load` returns.
        processor: The second.
        name: Name of the model in the API.
        options: How it is served.
        key: Key that is demanded; None for none.
    """

    def __init__(
        self,
        model: PALLaVAForConditionalGeneration,
        processor: PALLaVAProcessor,
        name: str,
        options: ServeOptions,
        key: str | None = None,
    ) -> None:
        self.name, metrics, num_bytes, parts = name, Metrics(), options.max_mb << 20, (model, processor)
        chat = EngineModel(*parts, options.engine, options.timeout) if options.engine else ChatModel(*parts)
        at_once, threads = (1, options.max_batch) if options.engine else (options.max_batch, 1)
        self._scheduler = Scheduler(
            chat,
            max_batch=at_once,
            max_waiting=options.max_waiting,
            num_threads=threads,
            on_batch=metrics.note_batch,
        )
        app = Bounds(
            Api(chat, self._scheduler, name, options, metrics).app(),  # type: ignore[arg-type]
            key=key,
            hosts={*_LOOPBACK, options.host.lower()} if is_loopback(options.host) else None,
            max_bytes=num_bytes,
            max_in_flight=_BODIES_AT_ONCE * num_bytes,
            max_requests=options.max_batch + options.max_waiting + _SPARE,
            headers=_HEADERS,
            on_status=metrics.note_status,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=Connection,
                ws="none",
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=options.timeout,
            )
        )

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, and then until the running answers have ended."""
        try:
            self._server.run(sockets=[listener])
        finally:
            self._scheduler.close()

    def stop(self) -> None:
        """End, from another thread."""
        self._server.should_exit = True


def _check(options: ServeOptions) -> None:
    check_at_least(0, port=options.port, max_images=options.max_images)
    check_at_least(1, max_batch=options.max_batch, max_new_tokens=options.max_new_tokens, max_pixels=options.max_pixels)
    check_at_least(1, max_mb=options.max_mb, max_waiting=options.max_waiting, timeout=options.timeout)
    if options.engine:
        check_is_here(options.engine)
    if options.engine and options.load_in_4bit:
        raise PallavaError("--load-in-4bit does not go with --engine, which has the language model; choose one")
    for host in options.allow_url:
        if not re.fullmatch(r"[\w.-]+", host):
            raise PallavaError(f"--allow-url must be the name of a host, such as images.example.org, got '{host}'")
    if options.port > 65535:
        raise PallavaError(f"--port must be at most 65535, got {options.port}")


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that has the port, and takes nobody yet."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # such as a label of a name that is too long
        reason = getattr(error, "strerror", None) or str(error)
        raise PallavaError(f"cannot listen on {host}, port {port}: {reason}; choose another by --port") from None
    return listener
