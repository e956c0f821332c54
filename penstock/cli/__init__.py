"""The command-line door. `main.py` is the tree of commands, `desk.py` how a command gets its operation done."""
