"""The demo: synthetic micrographs, the real parts it fetches, and the pipeline of ``pallava demo``."""
