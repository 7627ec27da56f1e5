# divdr on a CPU: `docker build -t divdr .`, then `docker run --rm divdr` makes the demo, and
# `docker run --rm divdr make test` runs the tests. Results: `-v "$PWD/output:/divdr/output"`.
FROM python:3.11-slim-bookworm

# What the Makefile calls; git names the commit in reports. No versions: Debian
# keeps only the newest of a package, so that a pinned one is gone after the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /divdr
COPY . .
RUN make setup

CMD ["make", "demo"]
