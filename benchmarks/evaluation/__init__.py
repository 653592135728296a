"""What samples are worth beside real images: fidelity, utility and privacy.

Metrics come from torchmetrics, MONAI, scikit-learn, scikit-image, scipy and pyradiomics. What is here is the protocol:
equal numbers on both sides, a floor and a ceiling beside every distance, intervals over patients, and nothing dropped
without a count.
"""
