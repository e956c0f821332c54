"""The data path: one inference call from credential to settlement. The story is in `relay.py`; start there."""
