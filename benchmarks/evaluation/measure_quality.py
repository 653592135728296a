"""Fidelity: how far samples lie from real images, beside how far real ones lie from each other, and from noise."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation import features as of
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.distances import coverage, frechet_between, kernel_distance
from benchmarks.evaluation.features import Extractor, noise_like
from benchmarks.evaluation.pairs import Pairs, drawn_by_patient, of_same_patients, together
from benchmarks.evaluation.report import Cell, Section, Table, histogram, sample_grid
from benchmarks.evaluation.segmentation import Recipe, Segmenter, seen_by
from benchmarks.evaluation.shapes import compared_features, features_of, gaps, lacking
from benchmarks.evaluation.sides import Sides, even_halves
from benchmarks.evaluation.similarity import KERNEL, Lpips, likeness, of_other_patients, partners, scales_for
from benchmarks.evaluation.statistics import mean_of, share_of

SURE_OF_FRECHET = 10  # pictures for each feature
HISTOGRAMS = 24
OTHERS, CEILING = "real, other patients", "noise (ceiling)"
SEVERAL_SLICES = (
    "Several of these real pictures are of one patient. That makes the Frechet distance of the other half of the "
    "patients larger, and their recall and coverage smaller, than those of independent samples of the same law: "
    "samples that come out better there are not better than real pictures. In the kernel distance no pair is of one "
    "patient, so it is 0 on average for the other half, and nearly so for independent samples; these are a little "
    "farther where a half has fewer than ten patients, as the real pictures set the scale of each feature."
)
OF_MASKS = "Like the real image of the same mask", "sample and the real image of its mask"
OF_PICTURES = "Like the picture that each was drawn under", "sample and its picture"
UNITS = {"PSNR": "PSNR (dB)"}
NO_SEGMENTER = "the real images have no masks, so features of a segmenter that learnt them are left out"


def quality(
    sides: Sides, files: Sequence[tuple[str, Path]], lpips: Path | None, recipe: Recipe, seed: int, cache: Cache
) -> Section:
    """What the page has of it; files: networks to compare by, name and path."""
    section = Section("Quality", warnings=sides.warnings())
    reference, other = even_halves(sides, seed)
    count = min(len(reference), len(other), len(sides.synthetic))
    reference, other, synthetic = (drawn_by_patient(each, count, seed) for each in (reference, other, sides.synthetic))
    section.text.append(
        f"Pictures are compared with one half of the real patients: {count} on each side. The other half of the "
        "patients shows how far real pictures are from each other; the noise, the same pixels in random order, is the "
        "ceiling."
    )
    if any(each.patient_count < count for each in (reference, other)):
        section.text.append(SEVERAL_SLICES)
    extractors = _extractors(section, reference, files, recipe, sides.classes, seed, cache)
    _distances(section, extractors, reference, other, synthetic, seed, cache)
    if sides.under is not None:
        _like_what_went_in(section, sides, lpips, seed)
    elif sides.without_masks is None:
        _paired(section, sides, lpips, seed)
    if sides.without_masks is not None:
        section.warnings.append(
            f"{sides.without_masks}: not measured are shapes of masks, and PSNR, SSIM, MS-SSIM and LPIPS to the real "
            "image of a mask"
        )
    elif sides.given is None and not sides.synthetic.facts.get("given_masks"):
        _shapes(section, sides, reference, other, synthetic, seed)
    section.pictures += [sample_grid(sides.synthetic, seed), sample_grid(sides.train, seed)]
    section.facts |= {"seed": seed, "compared": count, "features": {each.name: each.identity for each in extractors}}
    section.facts |= sides.facts()
    return section


def _extractors(
    section: Section,
    reference: Pairs,
    files: Sequence[tuple[str, Path]],
    recipe: Recipe,
    classes: int,
    seed: int,
    cache: Cache,
) -> list[Extractor]:
    found = []
    if of.has_radiomics():
        found.append(of.radiomics())
    else:
        section.warnings.append(of.NO_RADIOMICS)
    if reference.has_masks:
        found.append(segmenter_features(Segmenter(reference, recipe, classes, seed, cache)))
    else:
        section.warnings.append(NO_SEGMENTER)
    found += [of.of_network(name, file, reference.size) for name, file in files]
    if not found:
        section.warnings.append("Nothing is left to compare by, and no distance is measured: name a --features network")
        return found
    if not any(each.is_inception for each in found):
        section.text.append(
            "There is no FID and no KID here: they are of the Inception network, which --features inception=PATH "
            "would name. Distances of other features are named by them, and no paper's figures can stand beside them."
        )
    return found


def segmenter_features(segmenter: Segmenter) -> Extractor:
    """What a segmenter sees that learns from real pairs."""
    what = "DynUNet's level above the lowest, deviation of each channel"
    return Extractor(of.SEGMENTER, f"{what} {segmenter.identity}", lambda images: seen_by(segmenter.network, images))


def _distances(
    section: Section,
    extractors: Sequence[Extractor],
    reference: Pairs,
    other: Pairs,
    synthetic: Pairs,
    seed: int,
    cache: Cache,
) -> None:
    noise = noise_like(reference, seed)
    for extractor in extractors:
        of_reference, of_other, *of_both = extractor.on_one_scale((reference, other), (synthetic, noise), cache)
        count, width = of_reference.shape
        rows: list[list[Cell]] = []
        sides = {"synthetic": (synthetic, of_both[0]), OTHERS: (other, of_other), CEILING: (noise, of_both[1])}
        for name, (pairs, found) in sides.items():
            groups = reference.groups, pairs.groups
            spread = coverage(of_reference, found, *groups, seed)
            rows.append(
                [
                    name,
                    count,
                    kernel_distance(of_reference, found, *groups, seed, same=of_same_patients(reference, pairs)),
                    frechet_between(of_reference, found, *groups, seed),
                    *spread,
                ]
            )
        columns = ["", "pictures", extractor.kernel_name(), extractor.frechet_name()]
        note = (
            f"{width} features ({extractor.identity.split(' {')[0].split(' on ')[0]}"
            f"{'' if extractor.is_inception else '; each less its mean over its deviation in both real halves'}). "
            f"The kernel distance has one subset, of all {count} pictures, without pairs of one patient; its interval "
            "is a bootstrap over patients. The Frechet distance has a jackknife over patients. Precision is the share "
            "of pictures near a real one, recall of real ones near a picture; "
            "density and coverage are Naeem's, with five neighbours."
        )
        if extractor.name == of.RADIOMICS:
            note += f" {of.NO_PUBLISHED_FRD}"
        section.tables.append(
            Table(f"By {extractor.name}", [*columns, "precision", "recall", "density", "coverage"], rows, note)
        )
        if count < SURE_OF_FRECHET * width:
            section.warnings.append(
                f"{count} pictures are few for a Frechet distance of {width} {extractor.name} features, which is too "
                f"high below {SURE_OF_FRECHET * width}: compare it with others of as many, and read the kernel "
                "distance first"
            )


def _paired(section: Section, sides: Sides, weights: Path | None, seed: int) -> None:
    rows, drawn = partners(sides.held_out, sides.synthetic)
    which, real = "held out", sides.held_out
    if len(rows) < 2:
        rows, drawn = partners(sides.train, sides.synthetic)
        which, real = "trained on", sides.train
    if len(rows) < 2:
        section.text.append(
            "No sample has the mask of a real image, so there are no pairs for PSNR, SSIM, MS-SSIM and LPIPS. "
            "Samples of an image model under real masks (sample --condition) have them."
        )
        return
    empty = sides.synthetic.empty
    what = (
        f"{len(rows)} samples under masks of real images ({which}), each image once. Left out are {empty} samples with "
        f"empty masks, which may be any image's, and {len(sides.synthetic) - len(rows) - empty} others"
    )
    _likeness(section, *OF_MASKS, what, real.at(rows), sides.synthetic.at(drawn), weights, seed)


def _like_what_went_in(section: Section, sides: Sides, weights: Path | None, seed: int) -> None:
    assert sides.under is not None
    rows = range(min(len(sides.under), len(sides.synthetic)))  # each mask or picture once
    what = f"{len(rows)} samples, each drawn under a {sides.given} of {sides.under.name}"
    named = OF_MASKS if sides.given == "mask" else OF_PICTURES
    _likeness(section, *named, what, sides.under.at(rows), sides.synthetic.at(rows), weights, seed)


def _likeness(
    section: Section, title: str, name: str, what: str, real: Pairs, synthetic: Pairs, weights: Path | None, seed: int
) -> None:
    """Of samples and real images in the same order, beside real images of different patients, and noise."""
    lpips = None if weights is None else Lpips(weights)
    compared = [(name, real, synthetic)]
    one, other = of_other_patients(real)
    if len(one):
        compared.append(("real images of different patients (floor)", real.at(one), real.at(other)))
    compared.append(("noise and the real image (worst)", real, noise_like(real, seed)))
    found = [(name, side, likeness(side, beside, lpips)) for name, side, beside in compared]
    figures = found[0][2]
    table: list[list[Cell]] = [
        [name, len(side), *(mean_of(values[metric], side.groups, seed) for metric in values)]
        for name, side, values in found
    ]
    note = (
        f"{what}. SSIM has a Gaussian kernel of {KERNEL} pixels "
        f"and a range of 1; MS-SSIM the weights {', '.join(map(str, scales_for(real.size)))}, as many scales as fit. "
    )
    if lpips is None:
        note += "LPIPS needs VGG16's weights: --lpips PATH."
    else:
        section.facts["lpips"] = f"torchvision vgg16, sha256 {lpips.digest}; heads of torchmetrics"
    named = [UNITS.get(metric, metric) for metric in figures]
    section.tables.append(Table(title, ["", "pairs", *named], table, note))


def _shapes(section: Section, sides: Sides, reference: Pairs, other: Pairs, as_many: Pairs, seed: int) -> None:
    """as_many: of the samples, as reference and other have pictures, for D goes with the number."""
    real, synthetic = together(sides.train, sides.held_out), sides.synthetic
    one, drawn = features_of(real), features_of(synthetic)
    of_reference = features_of(reference)
    of_as_many, of_halves = (
        dict(gaps(of_reference, features_of(side), reference.groups, side.groups)) for side in (as_many, other)
    )
    of_all = dict(gaps(one, drawn, real.groups, synthetic.groups))
    rows: list[list[Cell]] = [
        [
            name,
            mean_of(one[name], real.groups, seed),
            mean_of(drawn[name], synthetic.groups, seed),
            of_all[name],
            of_as_many.get(name),
            of_halves.get(name),
            _p(found.p),
            _p(adjusted),
            "yes" if adjusted < 0.05 else "no",
            found.delta,
        ]
        for name, found, adjusted in compared_features(one, drawn, real.groups, seed, synthetic.groups)
    ]
    there = {row[0] for row in rows}
    rows += [[name, *[None] * 9] for name in one if name not in there]
    columns = ["", "real", "synthetic", "KS D", "D of as many", "D of real halves"]
    columns += ["p", "p (Holm)", "differs", "Cliff's delta"]
    note = (
        "Means of pixels % of all pixels of a class, and of area in pixels, roundness, eccentricity and solidity of "
        "its largest component; where fewer than two masks of a side have the structure there is a dash. "
        "Delta is how much more often a synthetic value is above a real one than below it. Of patients with "
        "several slices, which are alike, p is twice the middle one of 99 draws of one slice a patient. "
        "What does not differ is not shown to be the same. "
        f"D is larger of fewer pictures: {len(reference)} of one half of the real patients beside {len(as_many)} "
        f"samples (as many), and beside {len(other)} of the other half (real halves). Of patients with several slices "
        "the latter is larger than of samples of the same law. "
        "D's interval is Massart's, as if each patient gave one value; p-values have none."
    )
    section.tables.append(
        Table(f"Shapes of masks: {len(real)} real, {len(sides.synthetic)} synthetic", columns, rows, note)
    )
    without, also = lacking(real), lacking(synthetic)
    section.tables.append(
        Table(
            "Masks without a structure, which the figures above leave out",
            ["", "real", "of", "synthetic", "of"],
            [
                [
                    name,
                    share_of(without[name], real.groups, seed),
                    len(real),
                    share_of(also[name], synthetic.groups, seed),
                    len(synthetic),
                ]
                for name in without
            ],
            "Shares of all masks.",
        )
    )
    section.pictures += [
        histogram(name, {"real": one[name], "synthetic": drawn[name]})
        for name in list(one)[:HISTOGRAMS]
        if name in drawn
    ]


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"
