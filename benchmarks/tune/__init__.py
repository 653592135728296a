"""Which solver, how many steps, which precision: the fastest of those whose samples are as good as the reference's.

command -> tune -> candidates, drawing, gate, plot; apply puts the answer into the bundle. The metrics are those of
``benchmarks.evaluation``.
"""
