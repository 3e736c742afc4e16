# Jobs and endpoints on NVIDIA GPUs. In the root of the repository:
#
#   docker build -f docker/cuda.Dockerfile -t REGISTRY/mlops-cuda:1 .
#   buildah bud  -f docker/cuda.Dockerfile -t REGISTRY/mlops-cuda:1 .
#
# The wheel of torch on PyPI brings its CUDA libraries along, so no base image with CUDA is needed; the driver is the
# node's, put into the container by NVIDIA's runtime, to which the two variables speak. TORCH_INDEX is for wheels of
# another CUDA, such as https://download.pytorch.org/whl/cu128.
ARG BASE=docker.io/library/python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=
COPY constraints.txt docker/requirements.txt /tmp/build/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c /tmp/build/constraints.txt -r /tmp/build/requirements.txt \
    && rm -rf /tmp/build \
    && groupadd --gid 1000 mlops && useradd --uid 1000 --gid 1000 --create-home mlops
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/mlops
