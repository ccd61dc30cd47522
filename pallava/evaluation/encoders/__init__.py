"""Encoders by themselves: zero-shot classification, retrieval, pointing."""
