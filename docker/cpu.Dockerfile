# Jobs and endpoints without GPUs. In the root of the repository:
#
#   docker build -f docker/cpu.Dockerfile -t REGISTRY/mlops-cpu:1 .
#   buildah bud  -f docker/cpu.Dockerfile -t REGISTRY/mlops-cpu:1 .
#
# TORCH_INDEX is where wheels of torch without CUDA are; empty: the index that pip is set to.
ARG BASE=docker.io/library/python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt docker/requirements.txt /tmp/build/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c /tmp/build/constraints.txt -r /tmp/build/requirements.txt \
    && rm -rf /tmp/build \
    && groupadd --gid 1000 mlops && useradd --uid 1000 --gid 1000 --create-home mlops
# Pods run as this user, with a read-only root.
USER 1000:1000
WORKDIR /home/mlops
