# A rollout server: docker build -f docker/sglang.Dockerfile -t megatron-fork-sglang .
# The engine's own image with this project on PYTHONPATH, which installs nothing. docs/images.md says what was checked of it.
# To pin the base by its content, give its digest: --build-arg BASE=lmsysorg/sglang:v0.5.23-cu130@sha256:...
ARG BASE=lmsysorg/sglang:v0.5.23-cu130
FROM ${BASE}
ENV MEGATRON_FORK_IMAGE=sglang MEGATRON_FORK_HOST=127.0.0.1 MEGATRON_FORK_PORT=8000 \
    PYTHONPATH=/opt/megatron-fork PYTHONUNBUFFERED=1
COPY megatron_fork /opt/megatron-fork/megatron_fork
COPY docker/entrypoint.sh docker/self_test.py docker/healthy.py /opt/megatron-fork/docker/
RUN chmod -R a+rX /opt/megatron-fork && useradd --create-home --uid 10001 engine
USER 10001
WORKDIR /home/engine
EXPOSE 8000
# Loading a model takes minutes; only then is silence a fault.
HEALTHCHECK --start-period=20m --interval=30s --timeout=15s --retries=4 CMD ["python3", "/opt/megatron-fork/docker/healthy.py"]
ENTRYPOINT ["/opt/megatron-fork/docker/entrypoint.sh"]
CMD ["--help"]
