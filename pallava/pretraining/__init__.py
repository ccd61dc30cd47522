"""PLIP: contrastive training of the pathology encoder with open_clip."""
