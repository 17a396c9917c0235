"""What is optimised: advantages, step weights, the clipped surrogate, divergences. Pure functions."""
