"""The image: built and asked where an engine answers, else linted; and the facts that its file must keep."""

import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from pallava.io.launch import free_port
from tests.tiny.answering_model import write_model
from tests.tiny.offline.ask_server import ask
from tests.tiny.wheel import build_wheel

ROOT = Path(__file__).parents[1]
FILE = ROOT / "Containerfile"
KEY = "a key of the test"


def read_instructions() -> list[tuple[str, str]]:
    """Each instruction with what follows it, on one line; comments are left out."""
    lines = [line for line in FILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()]


INSTRUCTIONS = read_instructions()
STARTS = [index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
FINAL = INSTRUCTIONS[STARTS[-1] :]  # the stage that the image is; the others only build for it


def find(name: str, among: list[tuple[str, str]] = FINAL) -> list[str]:
    return [rest for each, rest in among if each == name]


def read_copied() -> list[str]:
    """Files and folders of the repository that the image is built from."""
    return [word for rest in find("COPY", INSTRUCTIONS) if "--from" not in rest for word in rest.split()[:-1]]


def test_both_bases_are_of_one_python():
    bases = [rest.split()[0] for rest in find("FROM", INSTRUCTIONS)]
    found = [re.fullmatch(r"docker\.io/library/python:(3\.1[012])-(?:slim-)?\w+", base) for base in bases]
    assert all(found), f"a version of each, never the latest: {bases}"
    assert len({each[1] for each in found}) == 1, "the environment is made by one Python and run by the other"


def test_nothing_is_fetched_past_the_package_index_and_no_secret_is_in_it():
    assert not find("ADD", INSTRUCTIONS)
    text = "\n".join(rest for name, rest in INSTRUCTIONS if name not in ("ARG", "HEALTHCHECK"))
    assert not re.search(r"https?://|curl|wget|git clone", text)
    assert not re.search(r"(KEY|TOKEN|SECRET|PASSWORD)\s*=", text, re.IGNORECASE)


def test_one_argument_chooses_the_torch_of_cpus_or_of_cuda():
    (argument,) = find("ARG", INSTRUCTIONS)
    name, default = argument.split("=")
    assert default.endswith("/cpu")
    (install,) = [rest for rest in find("RUN", INSTRUCTIONS) if f"${name}" in rest]
    needed = re.findall(r'"(torch(?:vision)?[<>=].*?)"', (ROOT / "pyproject.toml").read_text())
    assert re.findall(r'"(torch.*?)"', install) == needed
    assert len(needed) == 2


def test_it_runs_as_an_ordinary_user_without_build_tools():
    names = [name for name, _ in FINAL]
    (user,) = find("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "a cluster cannot see that a name is not root"
    assert "RUN" not in names[names.index("USER") :]
    assert "slim" in find("FROM")[0]
    assert not any(re.search(r"apt|pip install", rest) for rest in find("RUN"))
    assert "uninstall --yes pip" in find("RUN")[0]


def test_the_server_gets_the_signals_and_is_asked_for_its_health():
    (entry,) = find("ENTRYPOINT")
    assert json.loads(entry)[:3] == ["pallava", "serve", "/model"], "a shell would not pass SIGTERM on"
    (health,) = find("HEALTHCHECK")
    command = json.loads(health.split(" CMD ")[1])
    assert command[0] == "python"
    assert "/health" in command[-1]
    compile(command[-1], "HEALTHCHECK", "exec")


def test_what_is_copied_is_enough_for_the_package_and_is_not_ignored(tmp_path):
    *rest, last = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rest[0] == "*"
    assert {line.removeprefix("!") for line in rest[1:]} == set(read_copied())
    assert last == "**/__pycache__"
    wheel = build_wheel(tmp_path, read_copied())
    assert {"pallava/serving/page.html", "pallava/configs/__init__.py"} <= {*zipfile.ZipFile(wheel).namelist()}


def find_engine() -> str | None:
    """The engine that answers, of those installed."""
    for name in filter(shutil.which, ("podman", "docker")):
        if subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return None


def test_a_linter_has_nothing_to_say():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not linter:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow  # it downloads some GB
def test_the_image_serves_a_read_only_folder(tmp_path):
    engine = find_engine()
    if not engine:
        pytest.skip("neither podman nor docker answers")
    model = write_model(tmp_path / "model")
    model.chmod(0o755)
    for path in model.iterdir():
        path.chmod(0o644)  # the container's user must read them
    form = ["--format", "docker"] if engine == "podman" else []
    subprocess.run([engine, "build", *form, "--tag", "pallava-test", "--file", FILE, ROOT], check=True)
    port = free_port()
    options = f"--rm --detach --init --read-only --tmpfs /tmp --publish 127.0.0.1:{port}:8000".split()
    options += ["--volume", f"{model}:/model:ro", "--env", f"PALLAVA_API_KEY={KEY}"]
    started = subprocess.run([engine, "run", *options, "pallava-test"], check=True, capture_output=True, text=True)
    container = started.stdout.strip()
    try:
        assert wait_for(f"http://127.0.0.1:{port}/health") == {"status": "ok"}
        who = subprocess.run([engine, "exec", container, "id", "-u"], check=True, capture_output=True, text=True)
        assert who.stdout.strip() == find("USER")[0].split(":")[0]
    finally:
        subprocess.run([engine, "stop", container], check=True)


def wait_for(url: str) -> dict:
    """The answer at a URL, once there is one."""
    for _ in range(120):
        try:
            return json.loads(ask(url))
        except OSError:
            time.sleep(1)
    raise TimeoutError(url)
