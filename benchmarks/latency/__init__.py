"""What a sample costs, beside the ways to draw the same sample without medgen.

``workload`` is what all draw, ``contenders`` lists who draws it, ``with_medgen`` and ``without_medgen`` hold them,
``processes`` gives each a process of its own, ``timing`` runs them in turn, ``command`` prints.
"""
