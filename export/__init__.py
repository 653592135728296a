"""Checkpoints become bundles: ONNX graphs that are checked against PyTorch."""
