"""The rules of money, without I/O: units, prices, bounds, limits, and what the ledger may do.

Integers only. USD is counted in nano-USD, contract lots in tokens. Everything here is a function of its arguments.
"""
