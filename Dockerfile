# One image for training, conversion and evaluation on NVIDIA GPUs.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/dongwu_jax
ENV PATH=/opt/dongwu_jax/bin:$PATH

WORKDIR /workspace/dongwu_jax
COPY . .
RUN pip install --no-cache-dir --editable '.[cuda]'

# JAX takes three quarters of the GPU by default; training may have more.
ENV XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
ENTRYPOINT ["python", "-m", "dongwu_jax.train"]
CMD ["--help"]
