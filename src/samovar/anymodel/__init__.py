"""Any model of anyone: leave it as it was, read what it returns, move its tensors; only torch."""
