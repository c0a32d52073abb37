# snnexp in a container. On a CPU:
#   docker build -t snnexp .
#   docker run --rm -v "$PWD:/work" snnexp dataset=digits neuron=rouser
# On a GPU (the driver comes from the machine, by the NVIDIA Container Toolkit; gcc is for Triton):
#   docker build -t snnexp:cuda --build-arg TORCH=torch==2.13.0 .
#   docker run --rm --gpus all -v "$PWD:/work" snnexp:cuda dataset=digits neuron=rouser device=cuda
# Records (mlflow.db, runs/) and data (data/) lie in the mounted folder. Add `--user $(id -u):$(id -g) -e HOME=/work` to own them.
FROM python:3.11-slim
ARG TORCH=torch==2.13.0+cpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /src
# the package index's own torch is the CUDA build; the CPU build comes from PyTorch's index
RUN case "$TORCH" in *+cpu) index="--extra-index-url https://download.pytorch.org/whl/cpu";; esac; \
    pip install --no-cache-dir $index -c /src/constraints.txt "$TORCH" "/src[cifar10dvs,sweep,postgres,system]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["snnexp"]
