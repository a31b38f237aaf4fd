"""What a model costs: operations, parameters, time. Budgets count in it; ``analysis`` shows it."""
