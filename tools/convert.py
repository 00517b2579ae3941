"""`megatron-fork convert` for batch jobs that run from a checkout: the same functions, the same words.

python tools/convert.py to-hf runs/quickstart-20260101-120000 OUT
"""

from megatron_fork.cli.convert import app

if __name__ == "__main__":
    app()
