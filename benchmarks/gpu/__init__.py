"""What an NVIDIA GPU does with the fused kernels and with whole trajectories.

``kernel_shapes`` and ``kernel_timing`` measure one operator at a time; ``contenders`` holds the ways to draw samples
and ``trajectory_timing`` runs them in turn; ``command`` writes and prints.
"""
