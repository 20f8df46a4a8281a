"""Colours of runs and heights, told apart by people with any colour vision, on white and on
near-black."""

LIGHT = ("#0b62a8", "#cc4c02", "#0a7f5f", "#9c3d86", "#8f6a00", "#2f8fc4", "#6b5b4d", "#30363d")
"""Of runs, for lines on white; after Okabe and Ito (2008)."""

DARK = ("#5aa9ee", "#f28a4a", "#3cc79b", "#d98bc4", "#e3b84a", "#8fd0f5", "#b9a795", "#d7dbe0")
"""The same, for lines on near-black."""

HEIGHT = ("#4853b8", "#3b7fca", "#32a6bb", "#4fc490", "#a5d85c", "#f7e34a")
"""Of heights, from low to high: lightness grows evenly, and the lowest can be seen on
near-black."""

POINT = "#d1130b"
"""The trained weights in a landscape."""
