"""`python -m megatron_fork`, which torchrun needs."""

from megatron_fork.cli import main

if __name__ == "__main__":
    main()
