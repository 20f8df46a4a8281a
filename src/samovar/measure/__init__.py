"""What is measured on a trained or untrained network: functions of a model and data to numbers with
their errors."""
