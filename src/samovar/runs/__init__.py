"""Run folders: measured records, checkpoints, and the loggers that mirror them."""
