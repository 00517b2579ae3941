# The trainer: docker build -f docker/trainer.Dockerfile -t megatron-fork-trainer .
# docs/images.md says what was checked of it and what was not. To pin the base by its content, give its digest:
# --build-arg BASE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-devel@sha256:...
ARG BASE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-devel

# Kernels without wheels are compiled here, so that no compiler's leavings get into the image.
FROM ${BASE} AS kernels
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Compute capabilities of A100, H100 and B200.
ARG ARCHITECTURES="8.0;9.0;10.0"
ARG JOBS=8
ENV TORCH_CUDA_ARCH_LIST=${ARCHITECTURES} NVTE_FRAMEWORK=pytorch MAX_JOBS=${JOBS} PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY constraints/newest.txt constraints/image.txt ./
# torch and what belongs to it is the base's: pip must not replace it.
RUN python3 -c "import sys, torch; assert sys.version_info[:2] == (3, 12), sys.version; print(f'torch=={torch.__version__}')" > keep.txt \
    && grep -hvE '^(#|torch|triton|numpy|pillow|nvidia)' newest.txt image.txt >> keep.txt \
    && pip install --constraint keep.txt --upgrade packaging ninja wheel setuptools pybind11 \
    && pip install --no-deps nvidia-cublas==13.2.0.9 \
    && pip wheel --constraint keep.txt --no-deps --no-build-isolation --wheel-dir /wheels transformer-engine-torch flash-attn

FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 NVTE_FRAMEWORK=pytorch \
    MEGATRON_FORK_IMAGE=trainer PYTHONPATH=/opt/megatron-fork
WORKDIR /opt/megatron-fork
COPY constraints constraints
COPY --from=kernels /wheels /tmp/wheels
COPY --from=kernels /build/keep.txt /tmp/keep.txt
COPY setup.py pyproject.toml README.md LICENSE ./
COPY megatron_fork megatron_fork
COPY examples examples
COPY tools tools
COPY docker/entrypoint.sh docker/self_test.py docker/
# cuBLAS last: torch asks for an older one of the same major version, which Transformer Engine's library cannot use.
RUN pip install --constraint /tmp/keep.txt --find-links /tmp/wheels --editable '.[logging]' transformer-engine \
        transformer-engine-cu13 transformer-engine-torch flash-attn \
    && pip install --no-deps nvidia-cublas==13.2.0.9 \
    && rm -rf /tmp/wheels \
    && chmod -R a+rX /opt/megatron-fork \
    && useradd --create-home --uid 10001 trainer
USER 10001
WORKDIR /home/trainer
ENTRYPOINT ["/opt/megatron-fork/docker/entrypoint.sh"]
CMD ["--help"]
