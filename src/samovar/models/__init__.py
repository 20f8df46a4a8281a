"""Networks: the table of names, the factory that builds them, and the readers of weight files."""
