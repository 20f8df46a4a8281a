"""Images: where they come from, which of them a step takes, and what is done to them.

Import the rooms themselves (`samovar.data.sources`, `.loader`, ...); this file stays empty so that
`folders` and `sources` can be read without torch."""
