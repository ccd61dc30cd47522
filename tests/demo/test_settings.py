from inspect import signature

import pytest

from pallava.cli.train import run_demo
from pallava.demo import DemoSettings
from pallava.errors import PallavaError


def test_scaling_leaves_enough_steps_for_a_warm_up():
    small = DemoSettings().scaled(0.001)
    assert small.plip_views == 16
    assert small.plip_views >= small.plip_batch
    assert (small.alignment_rows, small.instruction_rows, small.processes) == (12, 8, 1)
    assert small.training_options
    assert small.turns == DemoSettings().turns
    assert DemoSettings().scaled(1) == DemoSettings()
    tenth = DemoSettings().scaled(0.1)
    assert (tenth.alignment_rows, tenth.processes, tenth.training_options) == (252, 2, ())


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_scale_that_is_none(scale):
    with pytest.raises(PallavaError, match="above 0 and at most 1"):
        DemoSettings().scaled(scale)


def test_the_command_has_the_default_seed_of_the_demo():
    assert signature(run_demo).parameters["seed"].default == DemoSettings().seed
