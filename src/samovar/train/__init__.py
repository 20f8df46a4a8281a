"""Train a network: the step loop, its optimizer, evaluation, checkpoints, and trials made of whole
runs."""
