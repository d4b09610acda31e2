#!/usr/bin/env bash
# Builds the image for linux/amd64 and linux/arm64. TAG is its name, the rest goes to `docker buildx build`:
#
#   ./docker-build.sh mailboxqtt:latest --load --platform linux/amd64       into this machine's docker
#   ./docker-build.sh registry.example.com/mailboxqtt:0.1.0 --push          both, into a registry
set -euo pipefail
cd "$(dirname "$0")"

if [[ $# -lt 1 || $1 == -* ]]; then
    echo 'usage: ./docker-build.sh TAG [ARGUMENT OF docker buildx build]...' >&2
    exit 2
fi
tag=$1
shift
platforms=(--platform linux/amd64,linux/arm64)
for argument in "$@"; do
    if [[ $argument == --platform* ]]; then
        platforms=()
    fi
done
exec docker buildx build "${platforms[@]}" --tag "$tag" "$@" .
