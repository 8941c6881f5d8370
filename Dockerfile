# For a CPU:       docker build -t jaxmodels .
# For a TPU host:  docker build --build-arg EXTRAS=tpu -t jaxmodels .
# Runs are kept in the folder that is mounted at /work:
#   docker run --init -v "$PWD:/work" jaxmodels train charlm:notebook --out runs/first
# On a TPU host add --privileged --net=host. `docker stop -t 60` makes a run save and stop.

# The Python that constraints.txt was tested with.
FROM python:3.11-slim

# Extras of pyproject.toml, such as "tpu", "cuda" or "torch,tpu".
ARG EXTRAS=""

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY data_pipelines ./data_pipelines
COPY benchmarks ./benchmarks
COPY jaxmodels ./jaxmodels
COPY bridge ./bridge
RUN pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
    && rm -rf build && jaxmodels --version

# Any user may write its caches: docker run --user "$(id -u):$(id -g)"
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["jaxmodels"]
CMD ["--help"]
