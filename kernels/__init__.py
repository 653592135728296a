"""Fused operators, each as plain torch, Triton kernel, ONNX function and TensorRT plugin.

Importing them needs torch alone: Triton, ONNX and TensorRT are looked for when they are used.
"""
