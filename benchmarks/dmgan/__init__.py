"""The tables of dm-GAN's paper, beside the same on data that one has."""
