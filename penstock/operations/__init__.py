"""What can be managed, one noun a file; `index.py` is the list. The doors (HTTP, command line) are thin renderings of
it.
"""
