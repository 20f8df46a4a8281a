"""Train networks: the step loop, its optimizer, evaluation, checkpoints, trials of whole runs."""
