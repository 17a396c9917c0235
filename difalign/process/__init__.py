"""How a state moves one level: step functions, noise rules, grids. Pure; torch and numpy only."""
