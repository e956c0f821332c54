"""The engine of a worker: where it is, what it serves, and how it is kept running."""
