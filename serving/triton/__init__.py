"""NVIDIA's Triton Inference Server: finding and running it, and the model that it runs."""
