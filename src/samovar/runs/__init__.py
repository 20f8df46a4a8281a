"""The run folder: records of what was measured, checkpoints, and loggers of other packages."""
