"""What a sample costs, beside the ways to draw the same sample without medgen.

``rows`` says what is compared, ``peers`` and ``ours`` hold the rows, ``workers`` gives each a process of its own,
``measure`` runs them in turn, ``command`` prints.
"""
