# `.ci/run pin` writes the digest behind this tag: a release is built from a Dockerfile that has it.
FROM docker.io/library/rust:1.95-slim-bookworm AS build
# The allocator is built with make.
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    deploy/image/build.sh /image /symbols

# Files and lines for backtraces: docker build --target symbols --output symbols .
FROM scratch AS symbols
COPY --from=build /symbols/ /

# The program and glibc, and nothing else: no shell, no package manager. TLS roots are not needed, the API server's come with the
# Pod; neither are time zones, which the program brings.
FROM scratch
COPY --from=build /image/ /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/leasehold"]
CMD ["run", "--config=/etc/leasehold/leasehold.yaml"]
