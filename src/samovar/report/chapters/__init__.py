"""Chapters of the report: each file turns run folders into sections of plain data."""
