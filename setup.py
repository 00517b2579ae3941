"""Packaging of megatron-fork; the settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

SOURCE = (Path(__file__).parent / "megatron_fork" / "__init__.py").read_text()
(VERSION,) = re.findall(r"^__version__ = \"(.+)\"$", SOURCE, re.MULTILINE)

RUNTIME = [
    "torch>=2.11",
    "megatron-core>=0.16.1,<0.20",
    "numpy",
    "psutil",  # megatron-core's checkpoint writer hangs without it
    "transformers>=5.16",
    "tokenizers",
    "safetensors",
    "pydantic>=2.7",
    "annotated-types>=0.7",
    "omegaconf>=2.4",
    "typer",
    "rich",
    "matplotlib",
    "jinja2",
    "httpx",
    "math-verify",
    "mpmath",
    "reasoning-gym",
    "pyarrow",
    "pyyaml",
]
LOGGING = ["wandb", "tensorboard"]
DEVELOPMENT = [
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "pint",  # the units of answers are checked against it
    "ruff",
    "mypy",
    "types-PyYAML",
    "mbridge",
    "einops",
    "triton>=3.4; platform_system == 'Linux'",
]

DOCUMENTATION = ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"]
# The recipes of examples/ are in an installed package too: `megatron-fork train quickstart`.
RECIPES = "megatron_fork.examples"

setup(
    name="megatron-fork",
    version=VERSION,
    description="Reinforcement learning on the forking tokens of a reasoning model, on megatron-core",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages(include=["megatron_fork", "megatron_fork.*"]), RECIPES],
    package_dir={RECIPES: "examples"},
    package_data={
        RECIPES: ["**/*.yaml", "**/*.jsonl", "**/*.py"],
        "megatron_fork": ["py.typed"],
        "megatron_fork.analysis.page": ["*.html", "*.css", "*.js"],
        "megatron_fork.planning": ["published/*/config.json"],
        "megatron_fork.cluster": ["*.sbatch"],
    },
    install_requires=RUNTIME,
    extras_require={
        "logging": LOGGING,
        "docs": DOCUMENTATION,
        "dev": LOGGING + DEVELOPMENT + DOCUMENTATION,
        # With a GPU. scripts/gpu_environment.sh has the versions that were tested, and says what a machine lacks.
        "gpu": ["liger-kernel>=0.8.5", "transformer-engine[pytorch]>=2.16"],
        # In the trainer's environment: for rollout.engine=vllm_colocated. Servers want an environment of their own.
        "vllm": ["vllm>=0.28"],
        "sglang": ["sglang>=0.5.23"],
    },
    entry_points={"console_scripts": ["megatron-fork = megatron_fork.cli:main"]},
)
