"""What the two papers print.

PIG: Zhang et al., MICCAI 2025 (arXiv 2507.14833), 8,723 private slices of DBT, 512 x 512 pixels. Nothing is said of the
network that its FID is of, nor of its segmenter.

Cardiac: Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation", ACDC and
M&Ms, 128 x 128 pixels. Misprints are kept, and named in ``DOUBTS``.
"""

from typing import NamedTuple

PIG_FID = {"DDPM": 31.84, "DDIM": 31.54, "PIG": 15.88}  # Table 1, of 2048 slices each
PIG_STEPS = {"DDPM": 1024, "DDIM": 256, "PIG": 256}


class Overlap(NamedTuple):
    """Of lesions, in %: PIG's Table 2, five-fold cross-validation."""

    dice: float
    iou: float
    precision: float
    recall: float


PIG_SEGMENTATION = {
    "real": Overlap(52.36, 41.60, 56.14, 56.81),
    "real + LDM_2048": Overlap(56.91, 45.88, 60.92, 60.99),
    "real + SegGuidedDif_2048": Overlap(58.30, 46.99, 60.40, 64.76),
    "real + ControlNet_2048": Overlap(57.38, 46.09, 61.53, 61.78),
    "real + PIG_1024": Overlap(56.52, 45.39, 59.86, 61.70),
    "real + PIG_2048": Overlap(60.54, 49.10, 62.92, 66.01),
    "real + PIG_3072": Overlap(59.14, 47.92, 60.65, 65.66),
}


class Shape(NamedTuple):
    """Of a structure's masks: means of real and generated ones, and Kolmogorov and Smirnov's p."""

    real: float
    generated: float
    p: float


MASKS = {  # Table III
    "LV: pixels %": Shape(5.1577, 6.5380, 0.0156),
    "LV: area": Shape(845.04, 875.31, 0.9084),
    "LV: roundness": Shape(0.9009, 0.7160, 1.35e-40),
    "LV: eccentricity": Shape(0.4929, 0.4728, 0.1112),
    "LV: solidity": Shape(0.9644, 0.9001, 1.35e-40),
    "RV: pixels %": Shape(5.6487, 5.9424, 0.0061),
    "RV: area": Shape(925.08, 749.15, 0.1548),
    "RV: roundness": Shape(0.5997, 0.5151, 1.75e-6),
    "RV: eccentricity": Shape(0.8026, 0.8196, 0.3682),
    "RV: solidity": Shape(0.8132, 0.7727, 0.0022),
    "MYO: pixels %": Shape(5.8536, 6.3840, 0.0022),
    "MYO: area": Shape(957.75, 980.93, 0.1113),
    "MYO: roundness": Shape(0.1884, 0.1311, 8.00e-7),
    "MYO: eccentricity": Shape(0.3795, 0.4017, 0.0782),
    "MYO: solidity": Shape(0.5366, 0.5240, 0.0539),
}
MASK_SIZE = 128

CHAINS = ("cmr_ddpm", "cmr_ldm", "cmr_flow")  # their DDPM, LDM and FM
FIDELITY = {  # Table IV
    "SSIM": (0.22, 0.18, 0.22),
    "MS-SSIM": (0.36, 0.33, 0.40),
    "PSNR": (10.67, 9.95, 11.44),
    "FID": (72.52, 95.17, 108.32),
    "KID": (0.04, 0.08, 0.098),
    "LPIPS": (0.49, 0.51, 0.48),
}


class Contours(NamedTuple):
    """Of a segmenter, its background counted; distances in pixels."""

    dice: float
    iou: float
    hd95: float
    asd: float


UTILITY = {  # Table V: trained on; tested on M&Ms, on ACDC
    "M&Ms": (Contours(0.90, 0.84, 2.99, 1.04), Contours(0.91, 0.85, 2.89, 0.94)),
    "ACDC": (Contours(0.90, 0.83, 3.88, 1.23), Contours(0.93, 0.88, 2.65, 0.75)),
    "cmr_ddpm Full-Syn": (Contours(0.87, 0.80, 5.77, 1.79), Contours(0.87, 0.80, 6.28, 1.78)),
    "cmr_ddpm ACDC-Syn": (Contours(0.86, 0.79, 5.98, 1.89), Contours(0.88, 0.81, 4.72, 1.45)),
    "cmr_ddpm M&Ms-Syn": (Contours(0.89, 0.83, 4.34, 1.41), Contours(0.90, 0.84, 4.61, 1.34)),
    "cmr_ldm Full-Syn": (Contours(0.87, 0.79, 5.28, 1.74), Contours(0.87, 0.80, 4.90, 1.52)),
    "cmr_ldm ACDC-Syn": (Contours(0.85, 0.78, 7.94, 2.48), Contours(0.86, 0.79, 8.38, 2.43)),
    "cmr_ldm M&Ms-Syn": (Contours(0.89, 0.82, 4.17, 1.40), Contours(0.88, 0.82, 2.26, 1.53)),
    "cmr_flow Full-Syn": (Contours(0.87, 0.80, 6.53, 2.12), Contours(0.88, 0.81, 6.29, 1.81)),
    "cmr_flow ACDC-Syn": (Contours(0.82, 0.73, 8.75, 2.90), Contours(0.85, 0.76, 7.74, 2.19)),
    "cmr_flow M&Ms-Syn": (Contours(0.88, 0.82, 5.04, 1.64), Contours(0.89, 0.82, 5.73, 1.67)),
}
PRIVACY = {  # Table VI
    "L2": (12.0, 10.5, 19.0),
    "LPIPS": (0.36, 0.37, 0.41),
    "NNDR": (0.83, 0.85, 0.87),
    "AUC": (0.6029, 0.580, 0.6038),
}

DOUBTS = {
    "Table 1": "The paper does not say of which network its FID is, nor of which real slices.",
    "Table III": "Theirs contradicts itself: of real masks pixels % is the area over 128 x 128, of generated ones it "
    "is not (LV 5.34 by the area, 6.54 printed). LV's roundness and solidity share a p of 1.35e-40. Of 15 p-values 8 "
    "are below 0.05, and 6 after Holm's correction.",
    "Table V": "Theirs has distances in pixels, of 1.25 mm by the paper's text. It counts the background as a class, "
    "leaves out slices where a distance is not defined, and has an HD95 of 2.26 for LDM M&M-Syn on ACDC, below both "
    "rows of real data: probably a misprint.",
    "Table VI": "Theirs measures nearness to a folder that its script fills from the test set, and splits the attack's "
    "images, not patients: AUCs of 0.6029 and 0.6038 cannot be told apart. Its L2 is a mean, by that script; what its "
    "LPIPS and NNDR are is not said.",
}
