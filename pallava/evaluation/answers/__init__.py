"""Questions to a whole PA-LLaVA: asking, keeping and scoring its answers."""
