"""Cards and configuration to objects: the one place that resolves names to classes. Imports nothing heavy."""
