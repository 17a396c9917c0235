"""Scorers: one a file, and the weighted sum of several."""
