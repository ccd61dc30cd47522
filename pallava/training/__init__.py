"""The xtuner plugin. Importing it applies the work-arounds and registers our parts."""

from pallava.training import compat

compat.apply()
