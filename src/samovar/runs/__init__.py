"""Run folders: records of measured numbers, checkpoints, and loggers of other packages."""
