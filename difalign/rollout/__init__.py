"""Rollouts: plans as data, the one engine that runs them, replay of what it recorded, and reward groups."""
