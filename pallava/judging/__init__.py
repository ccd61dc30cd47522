"""A model behind an OpenAI-compatible endpoint, and what it is asked as a judge."""
