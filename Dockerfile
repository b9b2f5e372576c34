# The image of scaling_fl. Stage `train` is all that jobs need; stage `debug` waits for a debugger. `run-local.sh` builds
# and runs both (docs/docker-and-debugging.md); by hand:
#
#   docker build --target train -t scaling_fl .
#   docker run --rm --init --gpus all -v scaling_fl-cache:/cache scaling_fl scripts/train_federated.py with demo
#   docker run --rm --init scaling_fl -m pytest
#
# Build arguments: BASE, a Debian-based image with Python 3.11, 3.12 or 3.13 and its module venv; TORCH_INDEX, a package
# index for PyTorch instead of PyPI, whose Linux wheels include several GB of CUDA (https://download.pytorch.org/whl/cpu
# has wheels without); COMMIT, which runs record.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS train

# compile=True and Triton call a C++ compiler when training starts; sums of deltas are compiled below. Its version doesn't affect results.
# hadolint ignore=DL3008
RUN apt-get update -q && apt-get install -qy --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# A virtual environment works the same on every base, even if its Python packages come from the distribution.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1

# Requirements come before code, so that a change of code reuses their layer. The packages for tests and for the task hub
# are included, so that the tested image is the one that trains. No cache mounts: the legacy builder lacks them.
WORKDIR /opt/scaling_fl
COPY requirements.txt requirements-dev.txt ./
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --quiet --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"; \
    fi && \
    pip install --quiet --no-cache-dir -r requirements-dev.txt

COPY . .
# Any user must be able to read the code, however strict the builder's umask was.
RUN python -m compileall -q scaling_fl scripts && \
    python -c "from scaling_fl.distributed import fused_sum_c; fused_sum_c.library()" && \
    python -c "from scaling_fl.federated import fast_dropout; fast_dropout.enable()" && \
    chmod -R a+rX .

# docker-compose.yaml runs the container with the caller's ids, so that results belong to the caller. A user without an
# entry in /etc/passwd needs USER and HOME. /cache is for a volume, /workspace for the caller's folder.
RUN useradd --create-home --uid 1000 scaling_fl && \
    install -d -m 1777 /cache /cache/home && \
    install -d -m 777 /workspace
ENV HOME=/cache/home USER=scaling_fl HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
VOLUME /cache
WORKDIR /workspace
USER 1000

# Last, because every commit changes these layers.
ARG COMMIT=
ENV SCALING_FL_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="scaling_fl" \
      org.opencontainers.image.description="Federated fine-tuning of pre-trained language models" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${COMMIT}"
ENTRYPOINT ["/opt/scaling_fl/containers/enter.sh"]


FROM train AS debug

USER 0
RUN pip install --quiet --no-cache-dir debugpy==1.8.22
USER 1000
# Silences debugpy's warning, in each child, about a missing -X frozen_modules=off; only Python's own modules are frozen.
ENV SCALING_FL_DEBUG=1 PYDEVD_DISABLE_FILE_VALIDATION=1
EXPOSE 5678
