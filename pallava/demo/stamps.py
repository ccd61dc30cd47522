"""Steps that are skipped when nothing they depend on has changed."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        name: Shown to the user, and the name of the stamp.
        run: Does it.
        settings: What its result depends on, besides code and earlier steps; anything JSON can hold.
        sources: Code and data files that it depends on.
        outputs: What must exist for it to be skipped.
    """

    name: str
    run: Callable[[], None]
    settings: object
    sources: Sequence[Path]
    outputs: Sequence[Path]


def run_steps(steps: Sequence[Step], stamps: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Runs steps in order; a step is skipped if a hash of all it depends on matches its stamp.

    Args:
        steps: Each depends on all before it.
        stamps: Folder of the stamps.
        say: Gets one line at the begin and the end of each step.

    Returns:
        Seconds that each step took, now or when it last ran.
    """
    stamps.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    before = ""
    for number, step in enumerate(steps, 1):
        stamp, before = stamps / f"{step.name}.json", _hash(step, before)
        title = f"[{number}/{len(steps)}] {step.name}"
        done = _read(stamp)
        if done.get("hash") == before and all(path.exists() for path in step.outputs):
            seconds[step.name] = float(str(done["seconds"]))
            say(f"{title}: nothing has changed, skipped")
            continue
        stamp.unlink(missing_ok=True)
        say(f"{title} ...")
        start = time.monotonic()
        step.run()
        seconds[step.name] = round(time.monotonic() - start, 1)
        stamp.write_text(json.dumps({"hash": before, "seconds": seconds[step.name]}))
        say(f"{title}: done in {seconds[step.name]:.0f} s")
    return seconds


def _hash(step: Step, before: str) -> str:
    digest = hashlib.sha256(json.dumps([before, step.name, step.settings], sort_keys=True).encode())
    for path in step.sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(stamp: Path) -> dict[str, object]:
    try:
        return dict(json.loads(stamp.read_text()))
    except (OSError, ValueError):
        return {}
