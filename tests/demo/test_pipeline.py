import contextlib
import os

from pallava.demo import DemoSettings, pipeline
from pallava.demo.pipeline import Demo, Step, run_steps


def steps(tmp_path, ran, settings=(1, 1), code="a"):
    source = tmp_path / "code.py"
    source.write_text(code)

    def make(name):
        def run():
            ran.append(name)
            (tmp_path / name).touch()

        return run

    return [
        Step(name, make(name), value, [source] if name == "one" else [], tmp_path / name)
        for name, value in zip(("one", "two"), settings, strict=True)
    ]


def run(tmp_path, **changes):
    ran = []
    run_steps(steps(tmp_path, ran, **changes), tmp_path / "stamps", lambda line: None)
    return ran


def test_a_step_runs_again_only_if_it_or_an_earlier_one_changed(tmp_path):
    assert run(tmp_path) == ["one", "two"]
    assert run(tmp_path) == []
    assert run(tmp_path, settings=(1, 2)) == ["two"]
    assert run(tmp_path, settings=(2, 2)) == ["one", "two"]
    assert run(tmp_path, settings=(2, 2), code="b") == ["one", "two"]


def test_a_step_whose_result_is_gone_runs_again(tmp_path):
    run(tmp_path)
    (tmp_path / "two").unlink()
    assert run(tmp_path) == ["two"]


def test_a_failed_step_is_not_taken_for_done(tmp_path):
    ran = []
    first, second = steps(tmp_path, ran)

    def fail():
        raise RuntimeError

    broken = Step("two", fail, second.settings, second.sources, tmp_path / "two")
    with contextlib.suppress(RuntimeError):
        run_steps([first, broken], tmp_path / "stamps", lambda line: None)
    assert run(tmp_path) == ["two"]


def test_steps_depend_on_data_files_as_on_code(tmp_path):
    sources = {
        step.name: {path.name for path in step.sources} for step in Demo(tmp_path, DemoSettings(), print)._steps()
    }
    assert {"fetch.py", "fetch.yaml"} == sources["fetch"]
    assert {"questions.py", "questions.yaml"} <= sources["draw"]
    assert {"rules.py", "rules.yaml", "class_sets.json", "statistics.yaml"} <= sources["questions"]
    assert {"clip.py", "clip.yaml", "chat_template.jinja"} <= sources["stage1"]


def test_what_programs_write_goes_to_the_log(tmp_path, capfd):
    """DeepSpeed tries a compiler when it is imported, whose errors would stand between the lines of the progress."""
    with pipeline.quiet(tmp_path / "step.log"):
        os.write(2, b"cannot find -laio")
    os.write(2, b"progress")
    assert capfd.readouterr().err == "progress"
    assert "cannot find -laio" in (tmp_path / "step.log").read_text()
