# scaling_fl in a container. Two stages can be built: `train`, which is all that is needed, and `debug`, which waits
# for a debugger. `run-local.sh` builds and runs them (docs/docker-and-debugging.md); by hand:
#
#   docker build --target train -t scaling_fl .
#   docker run --rm --init --gpus all -v scaling_fl-cache:/cache scaling_fl scripts/train_federated.py with demo
#   docker run --rm --init scaling_fl -m pytest
#
# Build arguments: BASE, any image with Python 3.11, 3.12 or 3.13 and its module venv, of Debian's kind; TORCH_INDEX,
# where to take PyTorch from instead of PyPI, whose Linux wheels bring several GB of CUDA
# (https://download.pytorch.org/whl/cpu has none); COMMIT, which the runs record.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS train

# compile=True and Triton call a C++ compiler when training begins. Its version makes no difference to results.
# hadolint ignore=DL3008
RUN apt-get update -q && apt-get install -qy --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# A virtual environment is the same on every base, also where the base's own packages are the distribution's.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1

# What changes seldom comes first: code alone changes nothing up to here. The packages for tests and for the task hub
# are in, so that what trains is what was tested. Every builder knows how to do this, old ones without caches of their
# own included.
WORKDIR /opt/scaling_fl
COPY requirements.txt requirements-dev.txt ./
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --quiet --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"; \
    fi && \
    pip install --quiet --no-cache-dir -r requirements-dev.txt

COPY . .
# Whoever the user is may read it, however strict the umask of who built it.
RUN python -m compileall -q scaling_fl scripts && chmod -R a+rX .

# Anyone may be the user: docker-compose.yaml takes the caller's ids, so that results belong to them. Who has no entry in
# /etc/passwd needs a name and a home. /cache is for a volume, and /workspace for the caller's folder.
RUN useradd --create-home --uid 1000 scaling_fl && \
    install -d -m 1777 /cache /cache/home && \
    install -d -m 777 /workspace
ENV HOME=/cache/home USER=scaling_fl HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
VOLUME /cache
WORKDIR /workspace
USER 1000

# Last, since each commit changes them.
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
# Children are started without -X frozen_modules=off, of which debugpy warns each time; only Python's own modules are frozen.
ENV SCALING_FL_DEBUG=1 PYDEVD_DISABLE_FILE_VALIDATION=1
EXPOSE 5678
