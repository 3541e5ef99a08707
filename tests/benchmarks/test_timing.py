from benchmarks.timing import time_calls


def test_calls_are_timed_one_by_one_and_the_warm_up_is_not_counted() -> None:
    calls: list[int] = []
    latency = time_calls(calls.append, [1, 2, 3], seconds=0.05)
    assert calls[:4] == [1, 2, 3, 1]
    assert 0 < latency.n_calls < len(calls)
    assert 0 < latency.p50_us <= latency.p95_us <= latency.p99_us
    assert latency.mean_us * latency.n_calls <= 0.05 * 1e6


def test_at_least_one_call_is_timed() -> None:
    assert time_calls(lambda _: None, [0], seconds=0.0).n_calls == 1
