"""Types, protocols, the one Gaussian and random keys: torch and the standard library only."""
