# The environment as a container:  docker build -t blip2 .   then   docker run --gpus all --shm-size=16g -it blip2
# Not tested on a GPU. For a cluster:  apptainer build blip2.sif docker-daemon://blip2:latest
FROM python:3.11-slim-bookworm

# build-essential: torch.compile and Triton need a C compiler. openjdk: METEOR and SPICE. pdsh, ssh: several nodes without SLURM.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential openjdk-17-jre-headless pdsh openssh-client \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/blip2
COPY requirements.lock .
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --compile-bytecode --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps -e .
ENV TOKENIZERS_PARALLELISM=false NO_ALBUMENTATIONS_UPDATE=1
