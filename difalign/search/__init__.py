"""Search: many candidates of a prompt start, few are walked to the end; schedules, budgets and the engine."""
