#!/usr/bin/env bash
# `make demo`: the shipped manifests on a real control plane of this machine's own, with the Leases at each step.
# On a terminal the cluster stays up afterwards; otherwise it is taken down. Ctrl-C takes it down at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

namespace=leasehold-system
directory=$(mktemp -d)
ready=$directory/ready
cluster=

follower=

stop() {
  if [ -n "$follower" ]; then kill "$follower" 2>/dev/null || true; fi
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

# One line a kind: who holds it, who is to follow, and how often it changed hands.
leases() {
  kubectl get leases -n $namespace -l leasehold.dev/role=shard -o custom-columns='KIND:.metadata.annotations.leasehold\.dev/kind,HOLDER:.spec.holderIdentity,SUCCESSOR:.metadata.annotations.leasehold\.dev/successor,TRANSITIONS:.spec.leaseTransitions,RENEWED:.spec.renewTime'
}

# The replicas that say they are there, each by a Lease of its own.
replicas() {
  kubectl get leases -n $namespace -l leasehold.dev/role=replica -o custom-columns='REPLICA:.spec.holderIdentity,RENEWED:.spec.renewTime'
}

# Prints who holds what whenever that changes, until it is told to stop: what a rollout looks like.
follow() {
  local start last now
  start=$(date +%s%3N)
  last=
  while :; do
    now=$(kubectl get leases -n $namespace -l leasehold.dev/role=shard -o jsonpath='{range .items[*]}{.metadata.name}={.spec.holderIdentity} {end}' 2>/dev/null | sed 's/\.leasehold\.dev=/ by /g; s/_[0-9a-f]*//g') || true
    if [ -n "$now" ] && [ "$now" != "$last" ]; then
      printf '  %6d ms  %s\n' $(($(date +%s%3N) - start)) "$now"
      last=$now
    fi
    sleep 0.05
  done
}

# Runs a command while the changes of holders are shown.
while_following() {
  follow &
  follower=$!
  "$@"
  sleep 0.3
  kill "$follower"
  wait "$follower" 2>/dev/null || true
  follower=
}

kinds=5

# Waits, a minute at most, until all kinds are held by pods that match; says how long it took.
until_held() {
  local pattern=$1 start now held
  start=$(date +%s%3N)
  while :; do
    held=$(kubectl get leases -n $namespace -l leasehold.dev/role=shard -o jsonpath='{range .items[*]}{.spec.holderIdentity}{"\n"}{end}' | grep -Ec "$pattern" || true)
    now=$(date +%s%3N)
    [ "$held" -lt $kinds ] || break
    if [ $((now - start)) -gt 60000 ]; then
      echo "not within a minute: $kinds Leases held by $pattern" >&2
      leases >&2
      kubectl logs -n $namespace -l app.kubernetes.io/name=leasehold --tail=20 --prefix >&2 || true
      exit 1
    fi
    sleep 0.1
  done
  echo "(after $((now - start)) ms)"
}

say "Building leasehold (release) and the test cluster; the first time takes some minutes"
cargo build --locked --release --bin leasehold --features cli,jemalloc
cargo build --locked --package leasehold-cluster

say "Finding or building etcd, kube-apiserver, kube-controller-manager and kubectl"
binaries=$(target/debug/leasehold-cluster build)
kubectl=$binaries/kubectl

say "Checking the configuration, offline"
target/release/leasehold check -f config/

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
kubectl wait --for=condition=Ready --timeout=60s tenants --all
kubectl wait --for=condition=Applied --timeout=60s webapps -n shop --all
kubectl get propagations
kubectl get expirypolicies -A
echo
echo "The copies that were made:"
kubectl get configmaps,secrets -A -l leasehold.dev/owner-uid

say "Kinds that no program was written for: config/tenant.yaml and config/webapp.yaml say what they get"
kubectl get tenants
kubectl get quota,limits,rolebindings,networkpolicies -n lilac -l leasehold.dev/owner-uid
kubectl get webapps -A
echo "(no image runs here, so its pods do not become available)"
kubectl get deployments,services,ingresses -n shop -l leasehold.dev/owner-uid

# Deletes an object and waits until there is one of that name again.
heals() {
  local start before now
  before=$(kubectl get "$@" -o jsonpath='{.metadata.uid}')
  start=$(date +%s%3N)
  kubectl delete "$@" --wait=false
  while :; do
    now=$(kubectl get "$@" -o jsonpath='{.metadata.uid}' 2>/dev/null || true)
    [ -z "$now" ] || [ "$now" = "$before" ] || break
    [ $(($(date +%s%3N) - start)) -lt 60000 ] || { echo "it did not come back" >&2; exit 1; }
  done
  echo "back after $(($(date +%s%3N) - start)) ms, of which kubectl took most"
}

say "What is deleted by hand comes back"
heals resourcequota/tenant -n lilac
heals service/storefront -n shop
heals configmap/ca-bundle -n orchid-web

say "By hand: leasehold hand-over Propagation"
target/release/leasehold hand-over Propagation -n $namespace
leases

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
start=$(date +%s%3N)
kill -KILL "$pid"
until [ "$(kubectl get lease propagation.leasehold.dev -n $namespace -o jsonpath='{.spec.holderIdentity}')" != "$victim" ]; do
  [ $(($(date +%s%3N) - start)) -lt 60000 ] || { echo "no replica took over" >&2; exit 1; }
  sleep 0.05
done
echo "process $pid is gone; $(($(date +%s%3N) - start)) ms later its kind is led again, without waiting for the Lease"
echo "(15 s): the kubelet restarted the container, and its new process knows that the old one is dead"
leases
kubectl get pods -n $namespace

# All kinds are led by pods of the newest ReplicaSet, or by any.
roll() {
  kubectl rollout restart -n $namespace deployment/leasehold
  kubectl rollout status -n $namespace deployment/leasehold --timeout=180s >/dev/null
}
scale() {
  kubectl scale -n $namespace deployment/leasehold --replicas="$1"
  kubectl rollout status -n $namespace deployment/leasehold --timeout=180s >/dev/null
  until [ "$(replicas | tail -n +2 | wc -l)" = "$1" ]; do sleep 0.1; done
}

say "A rolling restart: kubectl rollout restart deployment/leasehold"
leases
old=$(kubectl get pods -n $namespace -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}' | sed 's/-[^-]*$//' | sort -u)
echo "each kind moves once, to a new pod, as soon as that one has filled its cache:"
while_following roll
new=$(kubectl get pods -n $namespace --sort-by=.metadata.creationTimestamp -o jsonpath='{.items[-1:].metadata.name}' | sed 's/-[^-]*$//')
[ "$old" != "$new" ] || { echo "the rollout made no new pods" >&2; exit 1; }
until_held "^$new-"
leases
replicas

say "Down to one replica, and up to three again"
while_following scale 1
leases
echo "the kinds settle for 5 s before one is moved:"
balanced() {
  scale 3
  local start
  start=$(date +%s%3N)
  until [ "$(kubectl get leases -n $namespace -l leasehold.dev/role=shard -o jsonpath='{range .items[*]}{.spec.holderIdentity}{"\n"}{end}' | sort -u | wc -l)" = 3 ]; do
    [ $(($(date +%s%3N) - start)) -lt 60000 ] || { echo "the kinds were not spread" >&2; exit 1; }
    sleep 0.1
  done
}
while_following balanced
leases

if [ -t 1 ]; then
  say "The cluster stays up until Ctrl-C. In another terminal:"
  echo "  export KUBECONFIG=$KUBECONFIG"
  echo "  export PATH=$binaries:\$PATH"
  echo "  kubectl get leases -n $namespace --watch"
  wait "$cluster"
else
  say "Done; taking the cluster down (on a terminal it would stay up)"
fi
