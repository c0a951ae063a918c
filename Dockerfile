# One image for training, conversion and evaluation on NVIDIA GPUs; docs/launch.md has the commands.
# CUDA, cuDNN and NCCL are Python packages that jax[cuda13] brings along. Python's own image is therefore enough; the
# driver comes from the host, through the NVIDIA Container Toolkit.
FROM python:3.12-slim-bookworm AS base


FROM base AS environment

# Extras of pyproject.toml, with commas between: cuda,hf,eval. None gives an image for CPUs.
ARG EXTRAS=cuda
# What docs/performance.md was measured with.
ARG JAX_VERSION=0.11.2

RUN python -m venv /opt/dongwu_jax
ENV PATH=/opt/dongwu_jax/bin:$PATH

# The packages hang on pyproject.toml alone, so that a change of the code installs nothing anew. Editable: the environment
# only refers to this folder, into which the last stage puts the code and you may mount a checkout.
WORKDIR /workspace/dongwu_jax
COPY pyproject.toml .
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    mkdir dongwu_jax \
    && touch LICENSE README.md \
    && pip install --editable ".${EXTRAS:+[$EXTRAS]}" "jax==$JAX_VERSION"


FROM base

LABEL org.opencontainers.image.title="dongwu_jax" \
    org.opencontainers.image.description="Pre-train, fine-tune, compress, extend, distill and evaluate Llama models with JAX" \
    org.opencontainers.image.licenses="Apache-2.0"

# Any user will do (docker run --user), so that files on mounted folders belong to whoever started the container.
RUN useradd --uid 1000 --create-home dongwu_jax \
    && install --directory --mode=1777 /home/dongwu_jax /workspace/dataset /workspace/checkpoints /workspace/dongwu_jax/runs

COPY --from=environment /opt/dongwu_jax /opt/dongwu_jax
WORKDIR /workspace/dongwu_jax
COPY . .
# Who runs it cannot write here.
RUN /opt/dongwu_jax/bin/python -m compileall -q dongwu_jax

# USER: what Python calls a user without a name, one given by its number. The toolkit reads NVIDIA_*; the last two are
# those of tools/launch/environment.sh.
ENV PATH=/opt/dongwu_jax/bin:$PATH \
    HOME=/home/dongwu_jax \
    USER=dongwu_jax \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 \
    NCCL_DEBUG=WARN

# A number, by which Kubernetes tells that it is not root.
USER 1000:1000
# No shell between: signals reach Python, its exit code goes through.
ENTRYPOINT ["python", "-m", "dongwu_jax.train"]
CMD ["--help"]
