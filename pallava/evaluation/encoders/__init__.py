"""Evaluation of CLIP encoders: zero-shot classification, retrieval, and what a model looks at."""
