# snnexp on a CPU:
#   docker build -t snnexp .
#   docker run --rm -v "$PWD:/work" snnexp dataset=digits neuron=rouser
# Records (mlflow.db, runs/) and data (data/) lie in the mounted folder. For a GPU, start from an image that has torch and
# a driver's libraries, and install beside that torch: docs/installing.md.
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
      -c /src/constraints.txt "torch==2.13.0+cpu" "/src[cifar10dvs]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["snnexp"]
