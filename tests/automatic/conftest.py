from tests_small import data, evaluator, model, trainer  # noqa: F401
