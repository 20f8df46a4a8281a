"""`samovar reproduce`: the paper's tables and figures as plans of runs, measurements and claims
that are tested."""
