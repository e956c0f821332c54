"""What runs beside an engine, on a machine of its own: `penstock worker`. It imports nothing of the gateway's doors."""
