"""Drawing for the report: colours, line plots, labels, pictures and relief."""
