"""What `benchmarks/lm_head.py` runs: the work, its contenders, and how they are measured."""
