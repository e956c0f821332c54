"""Pairs: from a caller's dialect to an upstream's and back, where the two differ."""
