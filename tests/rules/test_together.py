"""Groups of tests that are not run beside each other are there, and told apart."""

from __future__ import annotations

from pathlib import Path

import tests
from tests.together import GROUPS, group_of


def test_every_module_of_a_group_is_there() -> None:
    (folder,) = tests.__path__
    assert GROUPS.keys() <= {path.stem for path in Path(folder).rglob("test_*.py")}


def test_tests_of_a_group_are_given_out_together_and_others_alone() -> None:
    crowd = group_of("tests/stories/test_torture.py::test_a[sqlite]")
    assert crowd == group_of("tests/stories/test_workers.py::test_b")
    assert crowd != group_of("tests/stories/test_crash.py::test_c")
    assert group_of("tests/rules/test_log.py::test_d[a::b]") == "tests/rules/test_log.py::test_d[a::b]"
