import serving  # noqa: F401  # first: it keeps ONNX Runtime from telling others of our models
