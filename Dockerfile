# `.ci/run pin` writes the digests behind these tags: a release is built from a Dockerfile that has them.
FROM docker.io/library/rust:1.95-slim-bookworm AS build
# The allocator is built with make.
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --package leasehold --features cli,jemalloc && cp target/release/leasehold /leasehold

# glibc and nothing else: no shell, no package manager. TLS roots are not needed, the API server's come with the Pod.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /leasehold /usr/local/bin/leasehold
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/leasehold"]
CMD ["run", "--config=/etc/leasehold/leasehold.yaml"]
