"""What a model knows: zero-shot classification and retrieval, with metrics, intervals and a page to look at."""
