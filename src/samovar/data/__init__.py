"""Images: their sources, the ones each step takes, and their processing.

Import the modules themselves (`samovar.data.sources`, `.loader`, ...); this file stays empty so
that `catalog` and `folders` can be read without torch."""
