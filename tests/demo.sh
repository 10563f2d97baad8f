#!/usr/bin/env bash
# `make demo`: the shipped manifests on a real control plane of this machine's own, with the Leases at each step.
# On a terminal the cluster stays up afterwards; otherwise it is taken down. Ctrl-C takes it down at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

namespace=leasehold-system
directory=$(mktemp -d)
ready=$directory/ready
cluster=

stop() {
  if [ -n "$cluster" ] && kill -TERM "$cluster" 2>/dev/null; then
    wait "$cluster" || true
  fi
  rm -rf "$directory"
}
trap stop EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }
kubectl() { "$kubectl" "$@"; }

# One line a kind: who holds it, for how long, and how often it changed hands.
leases() {
  kubectl get leases -n $namespace -l leasehold.dev/role=shard -o custom-columns='LEASE:.metadata.name,HOLDER:.spec.holderIdentity,TRANSITIONS:.spec.leaseTransitions,ACQUIRED:.spec.acquireTime,RENEWED:.spec.renewTime'
}

# Waits, a minute at most, until both kinds are held by pods that match; says how long it took.
until_held() {
  local pattern=$1 start now held
  start=$(date +%s%3N)
  while :; do
    held=$(kubectl get leases -n $namespace -l leasehold.dev/role=shard -o jsonpath='{range .items[*]}{.spec.holderIdentity}{"\n"}{end}' | grep -Ec "$pattern" || true)
    now=$(date +%s%3N)
    [ "$held" -lt 2 ] || break
    if [ $((now - start)) -gt 60000 ]; then
      echo "not within a minute: two Leases held by $pattern" >&2
      leases >&2
      kubectl logs -n $namespace -l app.kubernetes.io/name=leasehold --tail=20 --prefix >&2 || true
      exit 1
    fi
    sleep 0.1
  done
  echo "(after $((now - start)) ms)"
}

say "Building leasehold (release) and the test cluster; the first time takes some minutes"
cargo build --locked --release --bin leasehold
cargo build --locked --package leasehold-cluster

say "Finding or building etcd, kube-apiserver, kube-controller-manager and kubectl"
binaries=$(target/debug/leasehold-cluster build)
kubectl=$binaries/kubectl

say "Checking the configuration, offline"
target/release/leasehold check -f config/leasehold.yaml

say "Starting the control plane, with three nodes whose pods are processes"
target/debug/leasehold-cluster up --dir "$directory/cluster" --image leasehold=target/release/leasehold \
  --restart-backoff 1000 --ready-file "$ready" &
cluster=$!
until [ -s "$ready" ]; do
  kill -0 "$cluster" 2>/dev/null || { echo "the control plane did not start" >&2; exit 1; }
  sleep 0.2
done
KUBECONFIG=$(cat "$ready")
export KUBECONFIG

say "Installing: kubectl apply -f crds/ && kubectl apply -k deploy/"
kubectl apply -f crds/
kubectl wait --for=condition=Established --timeout=60s -f crds/ >/dev/null
kubectl apply -k deploy/
kubectl rollout status -n $namespace deployment/leasehold --timeout=120s

say "Three replicas share the kinds, each kind under its own Lease"
until_held .
kubectl get pods -n $namespace -o wide
leases

say "Objects to reconcile: kubectl apply -f config/samples/"
kubectl apply -f config/samples/
kubectl wait --for=condition=Ready --timeout=60s propagations --all
kubectl get propagations
kubectl get expirypolicies -A
echo
echo "The copies that were made:"
kubectl get configmaps,secrets -A -l leasehold.dev/owner-uid

say "A crash: SIGKILL for the process of the replica that leads Propagation"
victim=$(kubectl get lease propagation.leasehold.dev -n $namespace -o jsonpath='{.spec.holderIdentity}')
echo "its holder is $victim"
# Of this demo's own pods only: their kubeconfig lies in its folder.
pid=$(for environment in /proc/[0-9]*/environ; do
  variables=$({ tr '\0' '\n' <"$environment"; } 2>/dev/null) || continue
  if grep -qx "POD_NAME=${victim%_*}" <<<"$variables" && grep -q "^KUBECONFIG=$directory/" <<<"$variables"; then
    basename "$(dirname "$environment")"
  fi
done | tail -n 1)
[ -n "$pid" ] || { echo "no process of ${victim%_*} was found" >&2; exit 1; }
kill -KILL "$pid"
echo "process $pid is gone; nobody may take its Lease before 15 s have passed since its last renewal"
start=$(date +%s%3N)
until [ "$(kubectl get lease propagation.leasehold.dev -n $namespace -o jsonpath='{.spec.holderIdentity}')" != "$victim" ]; do
  [ $(($(date +%s%3N) - start)) -lt 60000 ] || { echo "no replica took over" >&2; exit 1; }
  sleep 0.1
done
echo "taken over $((($(date +%s%3N) - start) / 1000)) s after the crash; the container was restarted and stands by:"
leases
kubectl get pods -n $namespace

say "A rolling restart: kubectl rollout restart deployment/leasehold"
old=$(kubectl get pods -n $namespace -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}' | sed 's/-[^-]*$//' | sort -u)
kubectl rollout restart -n $namespace deployment/leasehold
kubectl rollout status -n $namespace deployment/leasehold --timeout=180s
new=$(kubectl get pods -n $namespace --sort-by=.metadata.creationTimestamp -o jsonpath='{.items[-1:].metadata.name}' | sed 's/-[^-]*$//')
[ "$old" != "$new" ] || { echo "the rollout made no new pods" >&2; exit 1; }
until_held "^$new-"
leases

say "A copy deleted by hand comes back"
copy=$(kubectl get configmaps -A -l leasehold.dev/owner-uid -o jsonpath='{.items[0].metadata.namespace} {.items[0].metadata.name}')
# shellcheck disable=SC2086
set -- $copy
kubectl delete configmap -n "$1" "$2"
start=$(date +%s%3N)
until kubectl get configmap -n "$1" "$2" >/dev/null 2>&1; do
  [ $(($(date +%s%3N) - start)) -lt 60000 ] || { echo "the copy did not come back" >&2; exit 1; }
done
echo "back after $(($(date +%s%3N) - start)) ms"

if [ -t 1 ]; then
  say "The cluster stays up until Ctrl-C. In another terminal:"
  echo "  export KUBECONFIG=$KUBECONFIG"
  echo "  export PATH=$binaries:\$PATH"
  echo "  kubectl get leases -n $namespace --watch"
  wait "$cluster"
else
  say "Done; taking the cluster down (on a terminal it would stay up)"
fi
