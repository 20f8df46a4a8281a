"""Studies of many runs: the demo, `tune`, `compare` and `reproduce`."""
