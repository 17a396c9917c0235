"""Rewards for other processes: an HTTP server around one reward model."""
