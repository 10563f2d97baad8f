#!/usr/bin/env bash
# Packs a folder as the root of a container image: oci.sh ROOT NAME:TAG ARCHIVE
# ARCHIVE is a tar of an OCI image layout (image-spec 1.1), with the list that `docker load` has read since before that. Neither an
# engine nor a registry takes part, there is no base image, and the same folder makes the same image. Prints the digest by which it
# is deployed, which a registry keeps.
set -euo pipefail

root=$1 tag=${2##*:} repository=${2%:*} archive=$(realpath -m "$3")
case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "oci.sh: what an image calls the architecture $(uname -m) is not known here" >&2 && exit 1 ;;
esac

layout=$(mktemp -d)
trap 'rm -rf "$layout"' EXIT
blobs=$layout/blobs/sha256
mkdir -p "$blobs"

digest() { sha256sum "$1" | cut -d' ' -f1; }
size() { stat --format %s "$1"; }
# Takes a file into the layout under its own digest, and prints that.
keep() {
  local digest
  digest=$(digest "$1")
  mv "$1" "$blobs/$digest"
  echo "$digest"
}
# Times and owners of this machine are none of an image's.
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --format=ustar -cf - -C "$@"; }

pack "$root" $(ls -A "$root") >"$layout/layer.tar"
unpacked=$(digest "$layout/layer.tar")
gzip -n9 "$layout/layer.tar"
layer=$(keep "$layout/layer.tar.gz")

# What starts, and as whom: not root.
cat >"$layout/config" <<JSON
{"architecture":"$architecture","os":"linux","config":{"User":"65532:65532","Entrypoint":["/usr/local/bin/leasehold"],"Cmd":["run","--config=/etc/leasehold/leasehold.yaml"],"Labels":{"org.opencontainers.image.title":"leasehold","org.opencontainers.image.version":"$tag","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:$unpacked"]},"history":[{"created_by":"deploy/image/oci.sh"}]}
JSON
config=$(keep "$layout/config")

media=application/vnd.oci.image
cat >"$layout/manifest" <<JSON
{"schemaVersion":2,"mediaType":"$media.manifest.v1+json","config":{"mediaType":"$media.config.v1+json","digest":"sha256:$config","size":$(size "$blobs/$config")},"layers":[{"mediaType":"$media.layer.v1.tar+gzip","digest":"sha256:$layer","size":$(size "$blobs/$layer")}]}
JSON
manifest=$(keep "$layout/manifest")

# By the full name: `leasehold:0.1.0` is looked for as docker.io/library/leasehold:0.1.0.
case $repository in
  */*) full=$repository ;;
  *) full=docker.io/library/$repository ;;
esac
cat >"$layout/index.json" <<JSON
{"schemaVersion":2,"mediaType":"$media.index.v1+json","manifests":[{"mediaType":"$media.manifest.v1+json","digest":"sha256:$manifest","size":$(size "$blobs/$manifest"),"platform":{"architecture":"$architecture","os":"linux"},"annotations":{"io.containerd.image.name":"$full:$tag","org.opencontainers.image.ref.name":"$tag"}}]}
JSON
echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
echo "[{\"Config\":\"blobs/sha256/$config\",\"RepoTags\":[\"$repository:$tag\"],\"Layers\":[\"blobs/sha256/$layer\"]}]" >"$layout/manifest.json"

mkdir -p "$(dirname "$archive")"
pack "$layout" oci-layout index.json manifest.json blobs >"$archive"
echo "sha256:$manifest"
