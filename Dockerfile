# envoy-cimd in a container: `docker build --tag envoy-cimd .`
# Debian 12 on both sides, so that the C library is the same.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12

# How it runs, wherever the program comes from. It writes nothing outside /var/lib/envoy-cimd, and that only with a
# file store: run it with a read-only root file system.
FROM ${RUNTIME_IMAGE} AS runtime
# A number, since Kubernetes cannot tell from a name that it is not root.
USER 65532:65532
ENV ENVOY_CIMD_STATE_DIR=/var/lib/envoy-cimd
ENTRYPOINT ["/usr/local/bin/envoy-cimd"]
CMD ["serve"]
# Where `serve` has its admin listener; let `choreographer` have it there too.
HEALTHCHECK --interval=2s --timeout=5s \
    CMD ["/usr/local/bin/envoy-cimd", "probe", "--ready", "http://127.0.0.1:9002/readyz"]

# --target prebuilt takes a program that was built elsewhere, for such a Debian: --build-arg PROGRAM=path/in/the/context
FROM runtime AS prebuilt
# Something that exists: the builder of older engines makes every stage on the way to the one that was asked for.
ARG PROGRAM=LICENSE
COPY ${PROGRAM} /usr/local/bin/envoy-cimd

FROM ${RUST_IMAGE} AS build
WORKDIR /src
RUN cargo install --locked --quiet cargo-cyclonedx@0.5.9
COPY . .
RUN cargo build --locked --release --bin envoy-cimd \
    && cargo cyclonedx --format json --no-build-deps --override-filename sbom.cdx \
    && mkdir state

FROM runtime
# What registries show. A release says which it is; in another build these are empty.
ARG SOURCE
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title=envoy-cimd \
    org.opencontainers.image.licenses=Apache-2.0 \
    org.opencontainers.image.source=${SOURCE} \
    org.opencontainers.image.version=${VERSION} \
    org.opencontainers.image.revision=${REVISION}
COPY --from=build /src/target/release/envoy-cimd /usr/local/bin/
# What is in the program, as CycloneDX.
COPY --from=build /src/sbom.cdx.json /usr/share/doc/envoy-cimd/
COPY --from=build --chown=65532:65532 /src/state /var/lib/envoy-cimd
