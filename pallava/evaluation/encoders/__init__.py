"""Evaluation of CLIP encoders: zero-shot classification, retrieval, pointing, and what a model looks at."""
