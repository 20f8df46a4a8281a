"""Networks: the table of names, the factory that builds them, and the files of weights that load
into them."""
