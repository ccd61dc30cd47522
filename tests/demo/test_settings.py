import pytest

from pallava.demo import DemoSettings
from pallava.errors import PallavaError


def test_scaling_leaves_enough_steps_for_a_warm_up():
    small = DemoSettings().scaled(0.001)
    assert small.plip_views == 16
    assert small.plip_views >= small.plip_batch
    assert (small.alignment_rows, small.instruction_rows, small.processes) == (30, 20, 1)
    assert small.turns == DemoSettings().turns
    assert DemoSettings().scaled(1) == DemoSettings()


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_scale_that_is_none(scale):
    with pytest.raises(PallavaError, match="above 0 and at most 1"):
        DemoSettings().scaled(scale)
