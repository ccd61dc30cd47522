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

from tests.tiny import pretraining
from tests.tiny.answering_model import write_model, write_questions
from tests.tiny.clips import write_open_clip
from tests.tiny.offline import HERE, Observed, namespace, watch
from tests.tiny.records import save_mixed_pairs
from tests.tiny.server import data_url
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke
OTHERS = ("doctor", "pretrain", "look", "data clean", "data clean --engine ray", "data check")
COMMANDS = ("chat", "serve", "evaluate", "train", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS))
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
    questions = write_questions(work / "data", 12)
    rows = save_data(work / "rows")
    parts = save_parts(work / "parts")

    def write_tiny_config() -> Path:
        return write_config("pallava_instruction_tuning", parts, rows, work / "tiny.py", num_steps=STEPS)

    words: dict[str, Callable[[], list[str | Path]]] = {
        "chat": lambda: ["MODEL", "--image", questions.with_name("0.png"), "--question", "what is shown ?"],
        "evaluate": lambda: ["MODEL", "custom", "--data", questions, "--max-new-tokens", "8"],
        "train": lambda: [write_tiny_config(), "--work-dir", "run", "--deepspeed", "pallava_zero1", "--seed", "1024"],
        "doctor": lambda: [write_tiny_config()],
        "pretrain": lambda: pretraining.command(work / "pairs", "out", "--batch-size", "4", "--epochs", "1")[4:],
        "look": lambda: [write_open_clip(work / "plip"), "--image", questions.with_name("0.png"), "--text", "gland"],
        "data clean": lambda: ["out", "--source", f"pairs={work / 'mixed'}"],
        "data clean --engine ray": lambda: ["out", "--source", f"pairs={work / 'mixed'}", "--workers", "1"],
        "data check": lambda: [rows["rows"], "--image-folder", rows["images"]],
    }

    @cache
    def observe(name: str) -> Observed:
        if name == "serve":
            server = ["pallava", "serve", model(), "--port", "0"]
            return watch(work / "serve", "python", HERE / "ask_server.py", data_url(), *server)
        if name == "pretrain":
            pretraining.save_pairs(work / "pairs", 8)
        elif name.startswith("data clean") and not (work / "mixed").exists():
            save_mixed_pairs(work / "mixed", 12)
        given = [model() if word == "MODEL" else word for word in words[name]()]
        two = {"NPROC_PER_NODE": "2"} if name == "train" else {}
        return watch(work / name.replace(" ", "_"), "pallava", *name.split(), *given, **two)

    @cache
    def model() -> Path:
        return write_model(work / "model")

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
    watched = [" ".join(Path(word).name for word in words[1:]) for words in observed.processes]
    assert any(line.startswith(f"pallava {name} ") for line in watched)
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


@pytest.mark.slow
@pytest.mark.parametrize(("offline", "hosts"), [("0", {"huggingface.co"}), ("1", set())])
def test_a_folder_that_could_be_a_hub_name_is_asked_for_unless_that_is_switched_off(tmp_path, offline, hosts):
    observed = watch(tmp_path, "pallava", "chat", "no/folder", "--question", "what ?", HF_HUB_OFFLINE=offline)
    assert observed.code == 2
    assert "'no/folder'" in observed.output
    assert {attempt["host"] for attempt in observed.attempts} == hosts


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
