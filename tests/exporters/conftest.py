from fakes import site  # noqa: F401
