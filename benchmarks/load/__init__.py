"""What a server does under load: requests that come whether or not those before are answered.

``arrivals`` says when they come and what they ask for, ``two_ways`` is a server that batches in both ways,
``open_loop`` sends the requests and ``figures`` sums up. ``simulation`` does the same on a clock that only counts, and
``simulated`` for machines that are not there; ``command`` prints.
"""
