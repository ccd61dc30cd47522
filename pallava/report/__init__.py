"""Tables, plots and self-contained HTML pages; imports nothing else of pallava."""
