"""Answer questions in conversation; what the terminal, an API and a page have in common."""
