"""Which solver, how many steps, which precision: the fastest of those whose samples are as good as the reference's.

command -> tune -> candidates, drawing, comparison, timing; comparison -> gate. plot draws the answer, apply puts it
into the bundle, calibration counts how often the gate errs. The metrics are those of ``benchmarks.evaluation``.
"""
