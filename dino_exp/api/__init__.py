"""Training from Python: what `dino_exp.train` and `dino_exp.sweep` do, and what they return."""
