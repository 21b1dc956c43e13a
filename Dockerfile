# syntax=docker/dockerfile:1
# One image a program: docker build --target mqbroker -t mqbroker . (also mqnamesrv, operator, rocketctl).
# Each holds one static binary and nothing else: no shell, no libc, a non-root user, and it runs on a read-only root. Servers have an empty /data of
# their own besides: a volume that Docker makes there belongs to their user.
# images/build.sh makes the same images from the same lines below without a Docker engine.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# A static glibc binary; its resolver needs only /etc/hosts and /etc/resolv.conf, which the container runtime provides.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target=$(uname -m)-unknown-linux-gnu && \
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" \
      -p operator -p namesrv -p broker -p rocketctl && \
    mkdir -p /out/data && \
    for b in operator mqnamesrv mqbroker rocketctl; do strip -o "/out/$b" "target/$target/release/$b"; done

FROM scratch AS operator
COPY --from=build /out/operator /operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/operator"]

FROM scratch AS mqnamesrv
COPY --from=build /out/mqnamesrv /mqnamesrv
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
EXPOSE 9876 9877
ENTRYPOINT ["/mqnamesrv"]

FROM scratch AS mqbroker
COPY --from=build /out/mqbroker /mqbroker
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
EXPOSE 10911 10909 10912 10913 40911
ENTRYPOINT ["/mqbroker"]

FROM scratch AS rocketctl
COPY --from=build /out/rocketctl /rocketctl
USER 65532:65532
ENTRYPOINT ["/rocketctl"]
