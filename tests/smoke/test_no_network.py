"""Nothing leaves the machine: no command connects anywhere but to what its user named.

Each command runs once, in a network namespace without any interface but loopback where the system allows one, and with
a guard in every Python process. The guard finds what Python code tries. The namespace's name server and the kernel's
count of packets without a way out find what any code tries. All three find what the code swallows.
"""

import json
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.offline import HERE, Observed, namespace, watch
from tests.tiny.server import data_url
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke
COMMANDS = ("chat", "serve", "evaluate", "train")
STEPS = 2
NOWHERE = "192.0.2.1"  # an address for documents, which nobody has
TELEMETRY = f"""
import urllib.request
for url in ("http://{NOWHERE}/", "http://usage.example.invalid/"):
    try:
        urllib.request.urlopen(url, timeout=5)
    except OSError:
        pass
print("done")
"""
NOT_PYTHON = f"(exec 3<>/dev/tcp/{NOWHERE}/443) 2>/dev/null; getent hosts usage.example.invalid; echo done"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Observed]:
    """Run a command by its name, once."""
    work = tmp_path_factory.mktemp("work")
    model, questions = write_model(work / "model"), write_questions(work / "data", 12)

    def words(name: str) -> list[str | Path]:
        if name == "chat":
            return ["pallava", "chat", model, "--image", questions.with_name("0.png"), "--question", "what is shown ?"]
        if name == "serve":
            return ["python", HERE / "ask_server.py", data_url(), "pallava", "serve", str(model), "--port", "0"]
        if name == "evaluate":
            return ["pallava", "evaluate", model, "custom", "--data", questions, "--max-new-tokens", "8"]
        data, parts = save_data(work), save_parts(work / "parts")
        config = write_config("pallava_instruction_tuning", parts, data, work / "tiny.py", num_steps=STEPS)
        return ["pallava", "train", config, "--work-dir", "run", "--deepspeed", "pallava_zero1", "--seed", "1024"]

    @cache
    def observe(name: str) -> Observed:
        return watch(work / name, *words(name), **({"NPROC_PER_NODE": "2"} if name == "train" else {}))

    return observe


def check_it_worked(name: str, observed: Observed) -> None:
    """The command did what it is for, under the guard: nothing is found where nothing is tried."""
    assert observed.code == 0, observed.output[-3000:]
    if name == "serve":
        answers = json.loads(observed.output.splitlines()[-1])
        assert "<html" in answers["page"]
        assert json.loads(answers["models"])["data"][0]["id"] == "model"
        assert json.loads(answers["completion"])["choices"][0]["message"]["content"]
        assert answers["stream"].endswith("data: [DONE]\n\n")
    watched = [" ".join(Path(word).name for word in words[1:3]) for words in observed.processes]
    assert f"pallava {name}" in watched
    trainers = [words for words in observed.processes if any(word.endswith("train.py") for word in words[:3])]
    assert len(trainers) == (2 if name == "train" else 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_python_code_names_another_host(run, name):
    observed = run(name)
    check_it_worked(name, observed)
    assert observed.attempts == []


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_looks_for_a_way_out(run, name):
    if not namespace()[0]:
        pytest.skip(f"no network namespace: {namespace()[1]}")
    observed = run(name)
    check_it_worked(name, observed)
    assert observed.num_unrouted == 0
    assert not [name for name in observed.lookups if not is_of_this_machine(name)]


def is_of_this_machine(name: str) -> bool:
    """Whether a name server is asked for this machine's own name, or for the name of a loopback address.

    Nobody else is named, and nothing is sent but that. torch.distributed does both where a training has several
    processes: torchrun asks for the machine's name (`_get_fq_hostname`), and the store, whose sockets are IPv6, for the
    name of each process that connects, to log it (`formatSockAddr`), by its IPv4 address, 127.0.0.1. /etc/hosts answers
    the first and not the second, which no setting leaves out.
    """
    return name == socket.gethostname() or name.endswith(".127.in-addr.arpa")


def test_a_call_home_is_found_though_its_error_is_swallowed(tmp_path):
    (tmp_path / "telemetry.py").write_text(TELEMETRY)
    observed = watch(tmp_path, "bash", "-c", "python telemetry.py")
    assert (observed.code, observed.output) == (0, "done\n")
    found = [(attempt["event"], attempt["host"]) for attempt in observed.attempts]
    assert found[0][1] == NOWHERE
    assert found[-1] == ("socket.getaddrinfo", "usage.example.invalid")
    assert any("telemetry.py:5" in frame for frame in observed.attempts[0]["stack"])


def test_a_call_home_of_code_that_is_not_python_is_found(tmp_path):
    if not namespace()[0]:
        pytest.skip(f"no network namespace: {namespace()[1]}")
    observed = watch(tmp_path, "bash", "-c", NOT_PYTHON)
    assert (observed.output, observed.attempts) == ("done\n", [])
    assert observed.num_unrouted == 1
    assert set(observed.lookups) == {"usage.example.invalid"}
