"""Define the colours of runs and heights.

People with any colour vision can tell them apart, on white and on near-black."""

LIGHT = ("#0b62a8", "#cc4c02", "#0a7f5f", "#9c3d86", "#8f6a00", "#2f8fc4", "#6b5b4d", "#30363d")
"""Colours of runs, for lines on white; after Okabe and Ito (2008)."""

DARK = ("#5aa9ee", "#f28a4a", "#3cc79b", "#d98bc4", "#e3b84a", "#8fd0f5", "#b9a795", "#d7dbe0")
"""The same colours for lines on near-black."""

HEIGHT = ("#4853b8", "#3b7fca", "#32a6bb", "#4fc490", "#a5d85c", "#f7e34a")
"""Colours of heights, from low to high.

Lightness grows evenly, and the lowest is visible on near-black."""

HEIGHT_SCALE = [[k / (len(HEIGHT) - 1), color] for k, color in enumerate(HEIGHT)]
"""The same as a colour scale of Plotly: pairs of a position from 0 to 1 and a colour."""

POINT = "#d1130b"
"""Colour of the trained weights in a landscape."""
