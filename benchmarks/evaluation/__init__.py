"""What samples are worth beside real images: fidelity, utility and privacy.

SSIM and MS-SSIM are torchmetrics', overlaps and distances of contours MONAI's, figures of shapes scikit-image's, tests
scipy's, the attack's regression scikit-learn's, and radiomics pyradiomics'. Frechet and kernel distance, precision,
recall, density and coverage, PSNR and AUC are written here, as intervals over patients need them, and LPIPS is built
again for weights in a file. What else is here is the protocol: equal numbers on both sides, other real patients and
noise beside every distance, intervals over patients, and nothing dropped without a count.
"""
