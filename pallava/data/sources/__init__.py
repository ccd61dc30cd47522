"""Readers of the public data sets: one file a set, all of them give records of `pallava.data.sources.base`."""
