"""PLIP: contrastive training of the pathology encoder with open_clip."""

import importlib.util

from pallava.errors import PallavaError

if importlib.util.find_spec("webdataset") is None:  # before imports that would not say what to do
    raise PallavaError(
        "pretraining needs webdataset, which is not installed; run `pip install 'open_clip_torch[training]'`"
    )
