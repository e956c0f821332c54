"""Figures of several processes add up, whatever each of them has seen."""

from __future__ import annotations

from penstock.figures import Family, Figures, Sample, add_up, lasting


def calls(**counts: int) -> Figures:
    samples = tuple(Sample("calls_total", (("model", model),), count) for model, count in counts.items())
    return (Family("calls", "counter", "Calls.", samples),)


def seconds(*buckets: int, total: float) -> Figures:
    """A histogram with these counts below 1, 2 … seconds and in all."""
    bounds = (*map(str, range(1, len(buckets))), "+Inf")
    counted = [Sample("s_bucket", (("le", le),), count) for le, count in zip(bounds, buckets, strict=True)]
    return (
        Family(
            "s", "histogram", "Seconds.", (*counted, Sample("s_count", (), buckets[-1]), Sample("s_sum", (), total))
        ),
    )


def open_now(count: int) -> Figures:
    return (Family("open", "gauge", "Open now.", (Sample("open", (), count),)),)


def test_rows_are_added_by_their_labels_and_those_of_one_process_alone_are_kept() -> None:
    assert add_up([calls(a=2**60, b=2), calls(b=40, c=7)]) == calls(a=2**60, b=42, c=7)


def test_histograms_are_added_bucket_by_bucket() -> None:
    assert add_up([seconds(1, 3, 4, total=2.5), seconds(0, 1, 1, total=1.25)]) == seconds(1, 4, 5, total=3.75)


def test_families_that_only_some_have_are_kept_in_the_order_they_were_seen() -> None:
    both = (*calls(a=1), *open_now(2))
    assert add_up([both, open_now(3), ()]) == (*calls(a=1), *open_now(5))
    assert add_up([]) == ()


def test_of_a_process_that_has_ended_what_it_counted_stays_and_what_was_open_does_not() -> None:
    assert lasting((*calls(a=1), *open_now(2), *seconds(1, 1, total=0.5))) == (*calls(a=1), *seconds(1, 1, total=0.5))
