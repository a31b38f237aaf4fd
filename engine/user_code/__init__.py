"""What people hand in: models by ``module:factory``, batches, example inputs, functions."""
