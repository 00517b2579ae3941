"""What several tests and benchmarks share: no test stands here. `tests/` is on the path, so it is `support` to all of them."""
