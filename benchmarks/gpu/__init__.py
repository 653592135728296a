"""What an NVIDIA GPU does with the fused kernels and with whole trajectories.

``kernel_cases`` and ``kernels`` measure one operator at a time; ``ways`` holds the ways to draw samples and
``trajectories`` runs them in turn; ``command`` writes and prints.
"""
