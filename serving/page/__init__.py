"""A page in a browser over a server that is up: choose, draw, look, and take it away."""
