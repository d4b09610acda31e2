# syntax=docker/dockerfile:1
# The broker in an image of its own: one static binary on nothing. How to run it is in docs/running.md.
#
# It is compiled on the machine that builds, for whichever platform is asked for: zig is the C compiler and the linker
# of both, so nothing is emulated.

FROM --platform=$BUILDPLATFORM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates cmake make python3-pip \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --break-system-packages --no-cache-dir ziglang==0.17.1 \
    && cargo install --locked cargo-zigbuild@0.24.1
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY loadgen loadgen
COPY packaging/container.toml packaging/
COPY src src
ARG TARGETARCH
RUN case "$TARGETARCH" in \
        amd64) target=x86_64-unknown-linux-musl ;; \
        arm64) target=aarch64-unknown-linux-musl ;; \
        *) echo "no build for $TARGETARCH" >&2; exit 1 ;; \
    esac \
    && if [ "$TARGETARCH" = arm64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
    && rustup target add "$target" \
    && cargo zigbuild --locked --release --bin mailboxqtt --target "$target" \
    && install -D -m 755 "target/$target/release/mailboxqtt" /image/usr/bin/mailboxqtt \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -D -m 644 packaging/container.toml /image/etc/mailboxqtt.toml \
    && install -d -m 750 -o 65532 -g 65532 /image/data

FROM scratch
LABEL org.opencontainers.image.title="mailboxqtt" \
      org.opencontainers.image.description="MQTT broker that uses all cores and loses nothing that it has acknowledged" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /image/ /
USER 65532:65532
# A file that is mounted over the settings takes their place, consent to anonymous clients included.
ENV MAILBOXQTT_CONFIG=/etc/mailboxqtt.toml \
    MAILBOXQTT_DATA_DIR=/data
VOLUME /data
EXPOSE 1883
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["/usr/bin/mailboxqtt", "health"]
ENTRYPOINT ["/usr/bin/mailboxqtt"]
