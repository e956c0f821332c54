"""The crash and cut proof: real gateways are flooded, killed and cut at random, and held to what their upstream kept.

    python -m torture                       all of it; `make torture` does the same
    python -m torture kill --seed 7 --histories 1

`script.py` is what one call is meant to do, `upstream.py` a process that does it and keeps the truth, `caller.py` what
a caller sees. `farm.py` runs gateways, `store.py` furnishes their store and reads it afterwards, `laws.py` says what
must be true of each call. The parts are `spend.py`, `kill.py`, `cut.py` and `drain.py`. Nothing here is a test of its
own: `tests/stories/test_torture.py` runs short versions of the parts.
"""
