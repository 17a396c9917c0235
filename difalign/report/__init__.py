"""The run folder: what a run writes, how sure its gain is, and the page and table that show it."""
