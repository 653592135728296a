"""What pictures are compared by: radiomics, a segmenter of the real data, or a network that the user has."""

import hashlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import EvaluationError, Floats, Pairs
from benchmarks.evaluation.progress import followed

if TYPE_CHECKING:
    from torch import Tensor

RADIOMICS, SEGMENTER, INCEPTION, SIX_NUMBERS = "radiomics", "segmenter", "inception", "six numbers"
BANDS = "mean, deviation and how much there is of details of 1, 2, 4 and 8 pixels"
INCEPTION_WIDTH, INCEPTION_SIDE = 2048, 299
CALLED_FID = (
    f"given 0 to 255 at {INCEPTION_SIDE} x {INCEPTION_SIDE} as TensorFlow 1 resizes them; called FID because you "
    "called it inception: nothing here knows the weights"
)
SETTINGS = {"binWidth": 8, "force2D": True, "force2Ddimension": 0}  # of 256 grey levels
KINDS = ("firstorder", "glcm", "gldm", "glrlm", "glszm", "ngtdm")
NO_PUBLISHED_FRD = (
    "FRD here is FID's formula on these features: pyradiomics' 93 of first order, GLCM, GLDM, GLRLM, GLSZM and NGTDM, "
    "fewer where some do not vary, of whole pictures but for their outermost pixels, in 256 grey levels and bins of "
    f"{SETTINGS['binWidth']}, without filters, masks or shapes. It is neither published FRD, and figures of those "
    "cannot stand beside it: that of arXiv 2403.13890 has shapes too, and scales each feature by its least and "
    "greatest value; that of arXiv 2412.01496 adds features of wavelets and Laplacians, scales by the reference alone, "
    "and is a logarithm."
)
BORDER = 1  # pixels around, as pyradiomics needs
NO_RADIOMICS = (
    "radiomics are left out, as pyradiomics is not installed: pip install 'numpy<2' setuptools, then "
    "pip install --no-build-isolation pyradiomics (it needs a C compiler)"
)
BATCH = 32


@dataclass(frozen=True)
class Extractor:
    """Features [N, D] of images [N, S, S] in [0, 1]; ``identity`` is what they depend on beside the images, and
    what reports say of them."""

    name: str
    identity: str
    extract: Callable[[Floats], NDArray[np.float64]]

    @property
    def is_inception(self) -> bool:
        return self.name == INCEPTION

    def frechet_name(self) -> str:
        """FID is of Inception's features alone, FRD of radiomics; see ``NO_PUBLISHED_FRD``."""
        return {INCEPTION: "FID", RADIOMICS: "FRD (Frechet, radiomics)"}.get(self.name, f"Frechet ({self.name})")

    def kernel_name(self) -> str:
        return "KID" if self.is_inception else f"kernel distance ({self.name})"

    def of(self, pairs: Pairs, cache: Cache) -> NDArray[np.float64]:
        digest = hashlib.sha256(np.ascontiguousarray(pairs.images).data).hexdigest()
        made_of = [self.name, self.identity, digest, pairs.size]
        kept = cache.arrays("features", made_of, lambda: {"features": self.extract(pairs.images)})
        found: NDArray[np.float64] = kept["features"]
        return found

    def on_one_scale(self, real: Sequence[Pairs], others: Sequence[Pairs], cache: Cache) -> list[NDArray[np.float64]]:
        """Of the real sides and the others, each feature as it is in all real pictures; Inception's are left alone."""
        found = [self.of(each, cache) for each in (*real, *others)]
        return found if self.is_inception else standardised(np.concatenate(found[: len(real)]), *found)


def six_numbers() -> Extractor:
    """What needs neither masks nor weights: dm-GAN's tables are by it too."""
    return Extractor(SIX_NUMBERS, BANDS, _bands)


def _bands(images: Floats) -> NDArray[np.float64]:
    import torch

    from benchmarks.dmgan.features import pyramid_bands

    return pyramid_bands(torch.from_numpy(images)[:, None])


def has_radiomics() -> bool:
    return importlib.util.find_spec("radiomics") is not None


def radiomics() -> Extractor:
    """The 93 features of first order, GLCM, GLDM, GLRLM, GLSZM and NGTDM that pyradiomics has, of a whole picture."""
    return Extractor(RADIOMICS, f"pyradiomics {version('pyradiomics')} {SETTINGS}", _radiomics)


def _radiomics(images: Floats) -> NDArray[np.float64]:
    import SimpleITK
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    logging.getLogger("radiomics").setLevel(logging.ERROR)
    extractor: Any = RadiomicsFeatureExtractor(**SETTINGS)
    extractor.disableAllFeatures()
    for kind in KINDS:
        extractor.enableFeatureClassByName(kind)
    inside = np.zeros((1, *images.shape[1:]), np.uint8)
    inside[:, BORDER:-BORDER, BORDER:-BORDER] = 1
    mask = SimpleITK.GetImageFromArray(inside)
    rows = []
    for image in followed(list(images), "radiomics"):
        found = extractor.execute(SimpleITK.GetImageFromArray(image[None] * 255.0), mask)
        rows.append([float(value) for name, value in found.items() if name.startswith("original_")])
    return np.array(rows, np.float64)


def of_network(name: str, file: Path, size: int) -> Extractor:
    """A network in TorchScript (.pt) or ONNX (.onnx), tried on two pictures of this size.

    It gets float32 [N, 3, S, S], the grey level in each colour, in [0, 1]; one called inception gets 0 to 255 at 299 x
    299 pixels, as the Inception of TensorFlow takes them that FID is defined by. It gives [N, D], or maps [N, D, h, w]
    whose means are taken; D is 2048 of one called inception, which is all that is known of it.

    Raises EvaluationError if it cannot be read, or does not take these pictures.
    """
    try:
        identity = _identity(file)
    except OSError as error:
        raise EvaluationError(f"{error.filename} cannot be read: {error.strerror}") from error
    if file.suffix == ".onnx":
        run = _onnx(file)
    elif file.suffix in (".pt", ".ts", ".pth"):
        run = _torchscript(file)
    else:
        raise EvaluationError(f"{file} is neither a TorchScript (.pt) nor an ONNX (.onnx) network")
    identity += f", {CALLED_FID}" if name == INCEPTION else ""
    found = Extractor(name, identity, partial(_by_network, run, name == INCEPTION, file))
    width = found.extract(np.random.default_rng(0).random((2, size, size), np.float32)).shape[1]
    if found.is_inception and width != INCEPTION_WIDTH:
        raise EvaluationError(
            f"the network called inception has {width} features; FID's has {INCEPTION_WIDTH}: "
            "give another network another name"
        )
    return found


def _identity(file: Path) -> str:
    """The sha256 of a network's file and, of ONNX, of the files beside it that hold weights, one after another."""
    content = file.read_bytes()
    found = hashlib.sha256(content)
    beside = sorted(set(_external(content))) if file.suffix == ".onnx" else []
    for name in beside:
        found.update((file.parent / name).read_bytes())
    return f"sha256 {found.hexdigest()}" + (f" of {', '.join([file.name, *beside])}" if beside else "")


def _external(content: bytes) -> Iterator[str]:
    """The paths that tensors name, as protobuf writes them: key, length in bytes (7 bits in each), path."""
    for entry in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])", content):
        length = sum((byte & 127) << 7 * place for place, byte in enumerate(entry[1]))
        yield content[entry.end() : entry.end() + length].decode()


Run = Callable[[Floats], NDArray[Any]]


def _by_network(run: Run, inception: bool, file: Path, images: Floats) -> NDArray[np.float64]:
    import torch

    rows = []
    for part in followed(np.split(images, range(BATCH, len(images), BATCH)), file.name):
        colours = torch.from_numpy(part)[:, None].repeat(1, 3, 1, 1)
        if inception:
            colours = resized_for_inception(colours) * 255
        try:
            out = np.asarray(run(colours.numpy()), np.float64)
        except Exception as error:  # theirs have no common base
            why = " ".join(str(error).strip().splitlines()[-3:])
            raise EvaluationError(f"{file} does not take float32 {list(colours.shape)}: {why}") from error
        out = out.mean((2, 3)) if out.ndim == 4 else out
        if out.ndim != 2 or len(out) != len(part) or not np.isfinite(out).all():
            raise EvaluationError(f"{file} gives {list(out.shape)} for {len(part)} pictures; it must be finite [N, D]")
        rows.append(out)
    return np.concatenate(rows)


def resized_for_inception(colours: "Tensor") -> "Tensor":
    """Images [N, 3, S, S] at 299 x 299 as TensorFlow 1 resizes them, of which FID's figures are: linear between the two
    nearest pixels, counted from the first one's centre, and not averaged where there are fewer."""
    import torch

    side = colours.shape[-1]
    places = (torch.arange(INCEPTION_SIDE) * (side / INCEPTION_SIDE)).clamp(max=side - 1)
    weights = (1 - (places[:, None] - torch.arange(side)).abs()).clamp(min=0)
    return weights @ colours @ weights.T


def _onnx(file: Path) -> Run:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise EvaluationError(f"{file} is no ONNX network: {error}") from error
    entry = session.get_inputs()[0].name
    return lambda colours: session.run(None, {entry: colours})[0]


def _torchscript(file: Path) -> Run:
    import torch

    try:
        network = torch.jit.load(str(file), map_location="cpu").eval()
    except RuntimeError as error:
        raise EvaluationError(f"{file} is no TorchScript network: {str(error).splitlines()[0]}") from error

    def run(colours: Floats) -> NDArray[Any]:
        with torch.no_grad():
            out = network(torch.from_numpy(colours))
        return (out[0] if isinstance(out, tuple | list) else out).numpy()

    return run


def standardised(real: NDArray[np.float64], *sides: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Each side's features less their mean over their deviation in ``real``; those that do not vary in it are left out.

    real: every real picture at hand, so of two halves that are compared both. By one of them alone it is nearer to 0
    than the other, and of few patients that is a distance of its own.
    """
    deviation = real.std(0)
    varying = deviation > 1e-9 * np.maximum(1, np.abs(real.mean(0)))
    mean, deviation = real.mean(0)[varying], deviation[varying]
    return [(side[:, varying] - mean) / deviation for side in sides]


def noise_like(pairs: Pairs, seed: int) -> Pairs:
    """As many pictures, whose pixels are those of the pairs in random order: the ceiling of every distance."""
    from dataclasses import replace

    random = np.random.default_rng(seed)
    images = random.permuted(pairs.images.reshape(len(pairs), -1), axis=1).reshape(pairs.images.shape)
    return replace(pairs, name="noise", images=images)
