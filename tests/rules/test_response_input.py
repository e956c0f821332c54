"""The items of responses that are kept, found by their names."""

from __future__ import annotations

import json

from penstock.dialects.response_input import items_named


def test_the_first_item_of_a_name_is_the_one_that_is_meant_and_others_are_passed_over() -> None:
    output = [5, "a", None, ["a"], {"id": 7}, {}, {"id": "a", "n": 1}, {"id": "b"}, {"id": "a", "n": 2}]
    answer = json.dumps({"id": "resp_1", "output": output})
    found = items_named(answer, ["a", "c", "7"])
    assert {name: json.loads(bytes(item)) for name, item in found.items()} == {"a": {"id": "a", "n": 1}}
    assert items_named('{"id": "resp_1"}', ["a"]) == {}
