"""From figures, as the JSON holds them, to tables that show the paper's beside ours."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.evaluation.features import BANDS
from benchmarks.evaluation.report import Cell, Table, shown
from benchmarks.evaluation.statistics import Interval
from benchmarks.papers import paper
from benchmarks.papers.comparing import CEILING, FLOOR, SHUFFLED

Figures = Mapping[str, Any]
TESTS = ("M&Ms", "ACDC")
UNDER_MASKS = ("ddpm, paired", "SegGuidedDif", "ControlNet", "PIG")
TPR = "TPR at 1 % FPR"  # of the attack that the paper's AUC is of
DISTANCES_OF_SHAPES = ("D", "D of real halves", "D of noise")
NOT_COMPARED = "Not to be compared with the paper's figures; side by side for their order alone."
NO_ORDER = (
    "Not to be compared with the paper's figures, nor is any order to be read here: with --budget models are trained "
    "so little that this shows that the table is made, not what a method is worth."
)
NO_INTERVAL = (
    "There is no interval where all pictures have the same figure, as 0 where no lesion is found, or where they are of "
    "fewer than four patients."
)
ROW_SHUFFLED = f"Where it says {SHUFFLED}, each real picture has another's mask: what there is to lose. "
SPREAD = "± is the deviation of the means of several segmenters' seeds, which the intervals do not hold. "
FEW = "Frechet distances of few pictures are too high, and more so of few patients, as those of real slices are. "


def head(figures: Figures) -> str:
    """What all tables have in common."""
    amounts, budget = figures["amounts"], figures["budget_minutes"]
    much = "the papers' amounts" if budget is None else f"the amounts of --budget {budget:g}"
    networks = [f" {name}: {identity}." for name, identity in figures.get("networks", {}).items()]
    left = figures.get("unfinished", [])
    return (
        f"Theirs and ours side by side. Ours: {figures['machine']}, {much} (preset {amounts['preset']}), seed "
        f"{figures['seed']}, segmenters' seeds: {amounts['seeds']}. Found in --data: {', '.join(figures['found'])}."
        + "".join(networks)
        + (f" Not measured yet: {', '.join(left)}." if left else "")
        + ("" if figures["command"] is None else f"\n\nMade by `{figures['command']}`.")
        + f"\n\nVersions: {', '.join(f'{name} {version}' for name, version in figures['versions'].items() if version)}."
    )


def tables(figures: Figures) -> Iterator[Table]:
    """All that there are figures of."""
    if figures["mammograms"] or "hearts" in figures:
        yield digests(figures)
    caution = NOT_COMPARED if figures["budget_minutes"] is None else NO_ORDER
    for each in figures["mammograms"]:
        ours = [table_1(each), *([table_2(each)] if "Table 2" in each else [])]
        yield from warned(each, trained(each, "PIG's paper"), *cautioned(caution, *ours))
    if hearts := figures.get("hearts"):
        ours = [table_3(hearts), table_4(hearts), table_5(hearts), table_6(hearts)]
        yield from warned(hearts, trained(hearts, "the cardiac paper"), *cautioned(caution, *ours))


def digests(figures: Figures) -> Table:
    """Of all that drew samples."""
    measured = [*figures["mammograms"], *([figures["hearts"]] if "hearts" in figures else [])]
    rows = [
        [f"{name}, {each['name']}", facts["checkpoint_sha256"], facts["bundle_sha256"]]
        for each in measured
        for name, facts in each["models"].items()
    ]
    return Table("What drew the samples, by its sha256", ["", "checkpoint", "bundle"], rows)


def cautioned(caution: str, *found: Table) -> Iterator[Table]:
    yield from (replace(table, note=f"{table.note.strip()} {caution}") for table in found)


def warned(each: Figures, *found: Table) -> Iterator[Table]:
    """With what is doubtful of models that were given."""
    doubts = [f"{name}: {facts['doubt']}" for name, facts in each["models"].items() if facts["doubt"]]
    may = "; patients that are called held out may be among those that it learnt from."
    warning = f" WARNING: {'; '.join(doubts)}{may}" if doubts else ""
    yield from (replace(table, note=table.note + warning) for table in found)


def trained(each: Figures, whose: str) -> Table:
    rows: list[list[Cell]] = []
    for name, facts in each["models"].items():
        solver, steps = each["samplers"][name]
        begun = "a checkpoint that was given" if facts["given"] else "weights that ship" if facts["begun_from"] else ""
        size = f"{facts['parameters'] / 1e6:.2f} M"
        seconds = facts["training_seconds"]
        updates = " + ".join(map(str, facts["steps"]))
        rows.append(
            [
                name,
                f"{facts['size']} px",
                size,
                f"{updates} of {facts['batch']}",
                "not known" if seconds is None else f"{seconds:.0f} s",
                begun,
                facts["learnt"],
                f"{solver}, {steps}",
            ]
        )
    learnt, held_out = each["train"], each["held_out"]
    note = f"{of(learnt)} learnt, {of(held_out)} held out. {differs(whose)}"
    columns = ["model", "size", "parameters", "training steps", "took", "begun from", "learnt", "drawn with"]
    return Table(f"Ours on {each['name']}: what was trained, and on what", columns, rows, note)


def of(side: Figures) -> str:
    patients = side["patients"]
    return f"{side['pairs']} pictures" + ("" if patients in (None, side["pairs"]) else f" of {patients} patients")


def differs(whose: str) -> str:
    if whose == "PIG's paper":
        return "Theirs: 8,723 slices of DBT of 367 patients, 512 px, 7.13 M parameters a network; training not stated."
    return (
        "Theirs: ACDC and M&Ms, 128 px, 63 to 114 M parameters, 100 to 400 epochs on three RTX 6000 Ada. Of ACDC here, "
        "patients and pixel spacing are those of the folder."
    )


def table_1(each: Figures) -> Table:
    found = each["Table 1"]
    names = distances_in(found)
    rows: list[list[Cell]] = []
    for name, row in found.items():
        theirs = paper.PIG_FID.get(name)
        ceiling = {FLOOR: "real, the other half", CEILING: CEILING}.get(name, name)
        rows.append([ceiling, printed(theirs), *(interval(row.get(each)) for each in names), row["pictures"]])
    note = f"Against one half of the patients; beside it the other half, and noise, the ceiling. {compared(names)} "
    if "masks" in each:
        why = f"not run: its masks are {each['masks']}"
        rows += [[name, printed(paper.PIG_FID.get(name)), why, *[None] * len(names)] for name in UNDER_MASKS]
        note += f"Six numbers are {BANDS}. Nobody marked its lesions, so there is no Table 2 either. "
    return Table(
        f"PIG's Table 1 on {each['name']}: fidelity",
        ["", "theirs: FID", *(f"ours: {name}" for name in names), "pictures a side"],
        rows,
        note + paper.DOUBTS["Table 1"],
    )


def distances_in(found: Figures) -> list[str]:
    known = {"pictures", "SSIM", "MS-SSIM", "PSNR", "LPIPS"}
    return list(dict.fromkeys(name for row in found.values() for name in row if name not in known))


def compared(names: Sequence[str]) -> str:
    if "FID" in names:
        return "FIDs are over other real pictures than theirs."
    return FEW + "Ours is no FID, for there is no Inception here (--features inception=PATH). "


def table_2(each: Figures) -> Table:
    ours: Figures = each["Table 2"]
    rows: list[list[Cell]] = []
    for name in [*dict.fromkeys([*paper.PIG_SEGMENTATION, *ours])]:
        theirs, row = paper.PIG_SEGMENTATION.get(name), ours.get(name)
        cells: list[Cell] = [*map(printed, theirs or [None] * 4)]
        if row is None:
            rows.append([name, *cells, "not run", *[None] * 4])
            continue
        figures = [with_spread(row[metric], 100) for metric in ("Dice", "IoU", "precision", "recall")]
        gain = interval(row["Dice gained"], 100) if "Dice gained" in row else None
        rows.append([name, *cells, f"{row['real']} + {row['synthetic']}", *figures, gain])
    metrics = ("Dice", "IoU", "precision", "recall")
    columns = [
        "trained on",
        *(f"theirs: {name} %" for name in metrics),
        "pairs",
        *(f"ours: {name} %" for name in metrics),
    ]
    note = (
        "Ours: one class, lesions, of held-out patients, a missed one counts 0; intervals over patients. The numbers "
        "after a method are theirs of synthetic slices, beside some 7,000 real ones (0.15, 0.29 and 0.44 a real one); "
        "ours are 0.5, 1 and 1.5 a real one. Theirs is five-fold cross-validation, ours one split. No latent model of "
        f"breasts is here. {ROW_SHUFFLED}{of_seeds(rows)}"
    )
    if any("no interval" in shown(cell) for row in rows for cell in row):
        note += NO_INTERVAL
    return Table(f"PIG's Table 2 on {each['name']}: segmentation", [*columns, "Dice gained"], rows, note)


def table_3(hearts: Figures) -> Table:
    found = hearts["Table III"]
    side = hearts["size"] / paper.MASK_SIZE
    rows: list[list[Cell]] = []
    for name, theirs in paper.MASKS.items():
        row = found["rows"].get(name)
        cells: list[Cell] = [name, *map(printed, theirs)]
        if row is None:
            rows.append([*cells, "too few", *[None] * 7])
            continue
        cells += [interval(row.get(each)) for each in ("real", "generated", *DISTANCES_OF_SHAPES)]
        rows.append([*cells, probability(row["p"]), probability(row["p (Holm)"]), interval(row["delta"])])
    absent, counts = found["absent"], (found["real"], found["generated"])
    lacking = "; ".join(
        f"{name}: {count} of {counts[0]} real, {absent['generated'][name]} of {counts[1]} generated"
        for name, count in absent["real"].items()
    )
    note = (
        f"Means of {found['real']} real masks and {found['generated']} generated ones, intervals over patients. Areas "
        f"are in pixels: multiply ours by {1 / side**2:g} for pixels of theirs. D, which goes with the number of "
        f"masks, is between {found['of half']} masks of one half of the real patients and as many: generated, of the "
        "other half (the floor, which several slices of a patient make larger), and with pixels in random order (the "
        "ceiling; pixels % are then the same). Its interval is Massart's, as if each patient gave one value. p and "
        f"delta are of {found['compared']} real masks of all patients and as many generated. Delta: how much more "
        f"often a generated one is above a real one. Masks without the structure are left out: {lacking}. p is twice "
        f"the middle one of 99 draws of one slice a patient. {paper.DOUBTS['Table III']}"
    )
    columns = ["", "theirs: real", "generated", "p", "ours: real", "generated", *DISTANCES_OF_SHAPES]
    columns += ["p", "p (Holm)", "delta"]
    return Table(f"Table III on {hearts['name']}: shapes of masks", columns, rows, note)


def table_4(hearts: Figures) -> Table:
    found = hearts["Table IV"]
    rows: list[list[Cell]] = []
    ours = [*paper.CHAINS, FLOOR, CEILING]
    for metric in [*dict.fromkeys([*paper.FIDELITY, *distances_in(found)])]:
        cells = [interval(found[name].get(metric)) for name in ours]
        if any(cell is not None for cell in cells):
            rows.append([metric, *map(printed, paper.FIDELITY.get(metric, (None,) * 3)), *cells])
        else:
            rows.append([metric, *map(printed, paper.FIDELITY[metric]), *["not run"] * len(ours)])
    columns = ["", *(f"theirs: {name}" for name in paper.CHAINS), *(f"ours: {name}" for name in ours)]
    note = (
        f"Samples under the masks of {found[paper.CHAINS[0]]['pictures']} held-out slices, beside these; noise, the "
        "ceiling, is the same slices' pixels in random order. SSIM's kernel "
        "has 11 pixels, MS-SSIM as many scales as fit. FID and KID need --features inception=PATH, LPIPS --lpips "
        "PATH."
    )
    return Table(f"Table IV on {hearts['name']}: fidelity", columns, rows, note)


def table_5(hearts: Figures) -> Table:
    ours: Figures = hearts["Table V"]
    tested = [name for name in TESTS if any(name in row["tested"] for row in ours.values())]
    tested += [name for row in ours.values() for name in row["tested"] if name not in TESTS][:1]
    metrics, overlaps, distances = ("Dice", "IoU", "HD95", "ASD"), ("Dice", "IoU"), ("HD95", "ASD")
    rows: list[list[Cell]] = []
    for name in [*dict.fromkeys([*paper.UTILITY, *ours])]:
        theirs, row = paper.UTILITY.get(name), ours.get(name)
        cells: list[Cell] = (
            [name, *(printed(figure) for test in theirs for figure in test)] if theirs else [name, *[None] * 8]
        )
        if row is None:
            rows.append([*cells, "not run", *[None] * (len(tested) * len(metrics))])
            continue
        for test in tested:
            found = row["tested"].get(test)
            cells += [None if found is None else with_spread(found["mean"][each]) for each in metrics]
        rows.append([*cells[:9], f"{row['real']} + {row['synthetic']}", *cells[9:]])
    theirs_in, ours_in = ([*overlaps, *(f"{name} ({unit})" for name in distances)] for unit in ("px", "mm"))
    columns = ["trained on", *(f"theirs on {test}: {name}" for test in TESTS for name in theirs_in), "real + synthetic"]
    columns += [f"ours on {test}: {name}" for test in tested for name in ours_in]
    note = (
        "Ours: means of LV, MYO and RV without the background, intervals over patients (each structure's are in the "
        "JSON); a missed structure counts 0, and its distance is the picture's diagonal; distances are in mm by the "
        "files' spacing, which may be nominal. "
        f"{ROW_SHUFFLED}{of_seeds(rows)}{paper.DOUBTS['Table V']}"
    )
    return Table(f"Table V on {hearts['name']}: segmentation", columns, rows, note)


def table_6(hearts: Figures) -> Table:
    found = hearts["Table VI"]["rows"]
    scale = hearts["size"] / paper.MASK_SIZE
    names = [*dict.fromkeys([*paper.PRIVACY, TPR, *(name for row in found.values() for name in row)])]
    rows: list[list[Cell]] = [
        [
            f"{name} (ours: median)" if name.startswith(("L2", "NNDR", "LPIPS")) else name,
            *map(printed, paper.PRIVACY.get(name, (None,) * 3)),
            *(interval(found[chain].get(name)) if name in found[chain] else "not run" for chain in paper.CHAINS),
        ]
        for name in names
    ]
    searched, members = (hearts["Table VI"][what] for what in ("searched", "members"))
    patients, others = hearts["Table VI"]["patients"]
    strangers = hearts["held_out"]["pairs"]
    students = [
        f"{chain} is a student, and learnt at the noise levels of its own steps alone: its loss at others would say "
        f"little of its members, so it is not attacked; its teacher has the sha256 {teacher}. "
        for chain, teacher in hearts["Table VI"].get("teachers", {}).items()
    ]
    note = (
        f"Samples under held-out masks, nearest of all {searched} training pictures; L2 is of {hearts['size']} px, and "
        f"goes with the side: theirs would be {scale:g} times as far. The attack is on {members} training pictures of "
        f"{patients} patients and {strangers} of {others} others"
        + (": that the attack runs is shown, not that models keep secrets. " if hearts["Table VI"]["few"] else ". ")
        + (f"1 % of {strangers} is less than one, so the TPR is that at no false alarm. " if strangers < 100 else "")
        + "Where it does not say by the loss, AUC and TPR are of a regression on the paper's two features. "
        + ("It needs two patients on each side. " if min(patients, others) < 2 else "")
        + "".join(students)
        + paper.DOUBTS["Table VI"]
    )
    columns = ["", *(f"theirs: {name}" for name in paper.CHAINS), *(f"ours: {name}" for name in paper.CHAINS)]
    return Table(f"Table VI on {hearts['name']}: privacy", columns, rows, note)


def interval(told: Mapping[str, float | None] | None, times: float = 1.0) -> Interval | None:
    """From JSON, which has no NaN."""
    if told is None:
        return None
    return Interval(*(math.nan if told[end] is None else times * float(told[end] or 0) for end in Interval._fields))


def with_spread(told: Mapping[str, float | None], times: float = 1.0) -> Cell:
    """An interval and, where there are several seeds, the deviation of their means."""
    found, spread = interval(told, times), told.get("spread")
    return found if spread is None else f"{shown(found)} ± {shown(times * spread)}"


def of_seeds(rows: Sequence[Sequence[Cell]]) -> str:
    return SPREAD if any("±" in shown(cell) for row in rows for cell in row) else ""


def printed(value: float | None) -> str | None:
    """A figure of the papers with all its places."""
    return None if value is None else f"{value:g}"


def probability(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def markdown(table: Table) -> str:
    """A table as GitHub shows it, with its note below."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |"]
    lines.append("|" + "|".join("---" if not k else "---:" for k in range(len(table.columns))) + "|")
    lines += ["| " + " | ".join("" if cell is None else shown(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", table.note, ""])
