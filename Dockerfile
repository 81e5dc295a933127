# What every node of a cluster runs: Ray, this package, and the clients of all three clouds' buckets.
#
#   docker build -t registry.example.com/ti2v-dist:ray2.60.0 .
#   docker build -t ... --build-arg RAY_IMAGE=rayproject/ray:2.60.0-py311 .     without CUDA's libraries, for a head
#
# Ray's version is that of constraints.txt, and the nodes of a cluster must agree on it.
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-gpu
FROM ${RAY_IMAGE}

# The user of Ray's image, by number, so that a pod that forbids root can tell.
USER 1000:100
WORKDIR /home/ray/ti2v-dist

COPY --chown=1000:100 pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=1000:100 ti2v_dist ti2v_dist
COPY --chown=1000:100 examples examples
COPY --chown=1000:100 jobs jobs
RUN pip install --no-cache-dir -c constraints.txt '.[s3,gcs,azure]'

# Fetched weights. Mount a folder of the machine or a volume here, or each container fetches them again.
ENV HF_HOME=/home/ray/weights
RUN mkdir "${HF_HOME}"
