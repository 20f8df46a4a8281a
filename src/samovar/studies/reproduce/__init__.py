"""`samovar reproduce`: the paper's tables and figures as runs, measurements and tested claims."""
