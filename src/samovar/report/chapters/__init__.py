"""Build the chapters of the report: each file turns run folders into one chapter of plain data."""
