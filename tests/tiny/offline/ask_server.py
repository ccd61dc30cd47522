"""Start ``pallava serve FOLDER`` on a free port, ask all that a person's browser and a client ask, and end it.

It prints the answers as JSON. It is a program of its own, as a namespace holds server and client together.
"""

import json
import re
import signal
import subprocess
import sys
from typing import Any
from urllib.request import Request, urlopen

_SECONDS = 60


def ask(url: str, body: Any = None) -> str:
    """The text at a URL, or the answer to a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=_SECONDS) as answer:
        return answer.read().decode()


def main(image_url: str, *command: str) -> int:
    """Serve by a command, ask, and return 0 if the server ended by itself or by the signal."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
        content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": "what is shown ?"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        answers = {
            "page": ask(f"{url}/"),
            "health": ask(f"{url}/health"),
            "models": ask(f"{url}/v1/models"),
            "completion": ask(f"{url}/v1/chat/completions", body),
            "stream": ask(f"{url}/v1/chat/completions", {**body, "stream": True}),
            "reading": ask(f"{url}/v1/reading", {"image": {"url": image_url}}),
            "metrics": ask(f"{url}/metrics"),
        }
        print(json.dumps(answers))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(_SECONDS)
    return 0 if code in (0, -signal.SIGTERM) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
