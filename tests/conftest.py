"""What all tests share: how hypothesis draws its examples. Fixtures live beside the tests that use them."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: a slow machine is no counterexample. In CI the same examples every time, elsewhere new ones.
settings.register_profile("explore", deadline=None, max_examples=100)
settings.register_profile("repeat", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile("repeat" if os.environ.get("CI") else "explore")
