"""From a request to samples: solvers' tables, noise, and the loop over an engine."""
