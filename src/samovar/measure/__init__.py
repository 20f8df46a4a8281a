"""Measurements of trained or untrained networks: functions that yield numbers with their errors."""
