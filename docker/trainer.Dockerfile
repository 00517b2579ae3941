# The trainer on a GPU image that brings torch for CUDA: docker build -f docker/trainer.Dockerfile -t megatron-fork .
# Not built where the tests run, since there is no container engine; the CPU scripts install the same package.
ARG BASE=nvcr.io/nvidia/pytorch:25.09-py3
FROM ${BASE}
WORKDIR /opt/megatron-fork
COPY setup.py pyproject.toml README.md LICENSE ./
COPY megatron_fork megatron_fork
COPY examples examples
COPY tools tools
COPY constraints constraints
# torch and what belongs to it is the image's: pip must not replace it. The rest is what was tested.
RUN python -c "import torch; print(f'torch=={torch.__version__}')" > /tmp/keep.txt \
    && grep -vE '^(torch|triton|numpy|pillow)==' constraints/newest.txt >> /tmp/keep.txt \
    && pip install --no-cache-dir --constraint /tmp/keep.txt --editable '.[logging]'
ENTRYPOINT ["megatron-fork"]
