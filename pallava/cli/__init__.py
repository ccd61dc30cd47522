"""The ``pallava`` command."""
