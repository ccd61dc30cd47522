"""Records of the public data sets, and the training files that are written from them."""
