"""Evaluation of a PA-LLaVA or of an encoder: tasks, scores with intervals beside controls, and a page to look at."""
