"""Training configs; `pallava config list` names them."""
