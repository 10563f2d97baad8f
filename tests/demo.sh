#!/usr/bin/env bash
# `make demo`: the shipped manifests on a real control plane of this machine's own, with the Leases at each step.
# On a terminal the cluster stays up afterwards; otherwise it is taken down. Ctrl-C takes it down at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

namespace=leasehold-system
directory=$(mktemp -d)
ready=$directory/ready
programs=${CARGO_TARGET_DIR:-target}/demo
cluster=
follower=
builds=()

# Colour on a terminal, unless NO_COLOR is set; plain text elsewhere.
colour=
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then colour=yes; fi
paint() { if [ -n "$colour" ]; then printf '\033[%sm%s\033[0m' "$1" "$2"; else printf '%s' "$2"; fi; }

stop() {
  local build
  for build in "${builds[@]}" $follower; do kill "$build" 2>/dev/null || true; done
  if [ -n "$cluster" ] && kill -TERM "$cluster" 2>/dev/null; then
    wait "$cluster" || true
  fi
  rm -rf "$directory"
}
trap stop EXIT
trap 'exit 130' INT TERM

say() { if [ -n "$colour" ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi; }
note() { paint 2 "$*"; echo; }
kubectl() { "$kubectl" "$@"; }
leasehold() { "$programs/leasehold" "$@"; }
# The pods are processes of this machine, which the API server's proxy refuses to connect to.
status() { leasehold status -n $namespace --via pod-address "$@"; }

took() {
  local seconds=$((SECONDS - $1))
  if [ $seconds -lt 60 ]; then echo "$seconds s"; else echo "$((seconds / 60)) min $((seconds % 60)) s"; fi
}

# Of what kubectl has made: how many, by type.
counted() {
  awk '
    { sub(/\/.*/, "", $1); sub(/\..*/, "", $1); if (!($1 in of)) order[++types] = $1; of[$1]++; all++ }
    END {
      printf "%d objects:", all
      for (one = 1; one <= types; one++) {
        name = order[one]
        if (of[name] > 1) { sub(/y$/, "ie", name); name = name "s" }
        # Number and word stay in one line.
        printf "%s %d~%s", (one == 1 ? "" : ","), of[order[one]], name
      }
      print ""
    }' | fold -s -w 100 | sed 's/^/  /; s/~/ /g'
}

# Shows, as one line that changes on a terminal and every half minute elsewhere, what `progress` says, until all processes of
# `builds` have ended.
follow_builds() {
  local line last=-30 pid running
  while :; do
    running=
    for pid in "${builds[@]}"; do if kill -0 "$pid" 2>/dev/null; then running=yes; fi; done
    [ -n "$running" ] || break
    line=$(progress)
    if [ -t 1 ]; then
      printf '\r\033[K%s' "${line:0:$((${COLUMNS:-80} - 1))}"
    elif [ $((SECONDS - last)) -ge 30 ]; then
      echo "$line"
      last=$SECONDS
    fi
    sleep 1
  done
  if [ -t 1 ]; then printf '\r\033[K'; fi
}

# How far the builds are: cargo writes a line for each crate, and the control plane's build keeps a file of one line.
progress() {
  local crates packages
  crates=$(grep -c '^ *Compiling ' "$directory/cargo.log" || true)
  packages=$(cat "$directory/progress" 2>/dev/null || true)
  printf 'leasehold: %s of %s crates' "$crates" "$crates_of"
  if grep -q '^ *Finished ' "$directory/cargo.log" && [ -n "$packages" ]; then printf ', done'; fi
  if [ -n "$packages" ]; then printf '; control plane: %s' "$packages"; else printf ', %s' "$(took "$begun")"; fi
}

# Waits for a build, and shows what it wrote if it failed.
built() {
  local log=$1 pid=$2
  wait "$pid" && return
  cat "$log" >&2
  exit 1
}

# One profile and one set of features for both, so that what both depend on is compiled once; without the allocator, whose
# configuration alone takes a minute.
compile() {
  cargo build --locked --profile demo --features cli --package leasehold --package leasehold-cluster --bin "$1" 2>>"$directory/cargo.log" &
  builds+=($!)
}

# Builds the program and the control plane side by side; what is built already is found.
build() {
  local compiler finder
  begun=$SECONDS
  : >"$directory/cargo.log"
  crates_of=$(cargo tree --locked --features cli --package leasehold --package leasehold-cluster --edges normal,build --prefix none 2>/dev/null | sed 's/ (\*)$//' | sort -u | wc -l)
  compile leasehold-cluster
  compiler=$!
  follow_builds
  built "$directory/cargo.log" "$compiler"
  "$programs/leasehold-cluster" build --progress-file "$directory/progress" >"$directory/binaries" 2>"$directory/build.log" &
  finder=$!
  builds=("$finder")
  compile leasehold
  compiler=$!
  follow_builds
  built "$directory/cargo.log" "$compiler"
  built "$directory/build.log" "$finder"
  builds=()
  kubectl=$(cat "$directory/binaries")/kubectl
  echo "built in $(took "$begun")"
}

# Which replica holds which kinds, as a picture: a box for each unit of weight, in the colour of its kind, or the kind's initial
# without colours. It is what `leasehold status` says.
spread() {
  status | awk -v colour="$colour" '
    function paint(code, text) { return colour == "" ? text : "\033[" code "m" text "\033[0m" }
    BEGIN { split("36 32 33 35 34 31", codes, " ") }
    /^KIND / { table = "kinds"; next }
    /^REPLICA / { table = "replicas"; next }
    /^$/ { table = "" }
    table == "kinds" {
      name = $1; sub(/\..*/, "", name)
      code = codes[number++ % 6 + 1]
      box = colour == "" ? substr(name, 1, 1) : "\342\226\210"
      boxes = ""
      for (unit = 0; unit < $5; unit++) boxes = boxes box
      bar[$2] = bar[$2] paint(code, boxes)
      names[$2] = names[$2] (names[$2] == "" ? "" : ", ") paint(code, name)
      load[$2] += $5
      if (load[$2] > most) most = load[$2]
    }
    table == "replicas" { replicas[++count] = $1 }
    END {
      if ("-" in load) replicas[++count] = "-"
      for (one = 1; one <= count; one++) {
        name = replicas[one]
        short = name == "-" ? "no replica" : name
        sub(/^leasehold-/, "", short)
        rest = ""
        for (unit = load[name]; unit < most; unit++) rest = rest (colour == "" ? "." : paint(2, "\302\267"))
        printf "  %-18s %s%s  %s\n", short, bar[name], rest, (name in names ? names[name] : paint(2, "stands by"))
      }
    }'
}

# The picture, and what anyone with kubectl sees.
show() {
  spread
  echo
  kubectl get leases -n $namespace -l leasehold.dev/role=shard | while IFS= read -r line; do note "  $line"; done
}

# Who holds which Lease now, in a line each: kind and replica.
holders() {
  kubectl get leases -n $namespace -l leasehold.dev/role=shard -o jsonpath='{range .items[*]}{.metadata.annotations.leasehold\.dev/kind} {.spec.holderIdentity}{"\n"}{end}' 2>/dev/null | sed 's/\.leasehold\.dev / /; s/_[0-9a-f]*$//; s/ leasehold-/ /'
}

# Prints each kind that changes hands, until it is told to stop: what a rollout looks like.
follow() {
  local start
  start=$(date +%s%3N)
  declare -A before=()
  while :; do
    while read -r kind holder; do
      if [ -n "${before[$kind]+known}" ] && [ "${before[$kind]}" != "$holder" ]; then
        printf '  %6d ms  %-14s %s -> %s\n' $(($(date +%s%3N) - start)) "$kind" "${before[$kind]:-free}" "${holder:-free}"
      fi
      before[$kind]=$holder
    done < <(holders || true)
    : >"$directory/following"
    sleep 0.05
  done
}

# Runs a command while the changes of holders are shown.
while_following() {
  rm -f "$directory/following"
  follow &
  follower=$!
  until [ -e "$directory/following" ]; do sleep 0.02; done
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
      spread >&2
      kubectl logs -n $namespace -l app.kubernetes.io/name=leasehold --tail=20 --prefix >&2 || true
      exit 1
    fi
    sleep 0.1
  done
  note "(after $((now - start)) ms)"
}

say "Building leasehold, and etcd, kube-apiserver, kube-controller-manager and kubectl; minutes the first time, seconds later"
build

say "Checking the configuration, offline: leasehold check -f config/"
leasehold check -f config/

say "Starting the control plane, with three nodes whose pods are processes"
"$programs/leasehold-cluster" up --dir "$directory/cluster" --image leasehold="$programs/leasehold" \
  --restart-backoff 1000 --ready-file "$ready" &
cluster=$!
until [ -s "$ready" ]; do
  kill -0 "$cluster" 2>/dev/null || { echo "the control plane did not start" >&2; exit 1; }
  sleep 0.2
done
KUBECONFIG=$(cat "$ready")
export KUBECONFIG

say "Installing: kubectl apply -f crds/ && kubectl apply -k deploy/"
kubectl apply -f crds/ | counted
kubectl wait --for=condition=Established --timeout=60s -f crds/ >/dev/null
kubectl apply -k deploy/ | counted
kubectl rollout status -n $namespace deployment/leasehold --timeout=120s

say "Three replicas share the kinds by weight, each kind under its own Lease"
until_held .
show
echo
note "kubectl get leases shows who leads what, and leasehold status says more:"
status

say "Objects to reconcile: kubectl apply -f config/samples/"
kubectl apply -f config/samples/ | counted
kubectl wait --for=condition=Ready --timeout=60s propagations --all >/dev/null
kubectl wait --for=condition=Ready --timeout=60s tenants --all >/dev/null
kubectl wait --for=condition=Applied --timeout=60s webapps -n shop --all >/dev/null
echo
kubectl get propagations
echo
kubectl get expirypolicies -A
echo
note "the copies that were made:"
kubectl get configmaps,secrets -A -l leasehold.dev/owner-uid

say "Kinds that no program was written for: config/tenant.yaml and config/webapp.yaml say what they get"
kubectl get tenants
echo
kubectl get quota,limits,rolebindings,networkpolicies -n lilac -l leasehold.dev/owner-uid
echo
kubectl get webapps -A
note "no image runs here, so its pods do not become available:"
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
while_following leasehold hand-over Propagation -n $namespace
show

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
echo "process $pid is gone; $(($(date +%s%3N) - start)) ms later its kind is led again, without the 15 s for which the Lease counts:"
echo "the kubelet restarted the container, and its new process knows that the old one is dead"
show
echo
kubectl get pods -n $namespace

# What the names of the newest pods begin with.
generation() {
  kubectl get pods -n $namespace --sort-by=.metadata.creationTimestamp -o jsonpath='{.items[-1:].metadata.name}' | sed 's/-[^-]*$//'
}
# Until all kinds are led by pods of the new generation.
roll() {
  local old
  old=$(generation)
  kubectl rollout restart -n $namespace deployment/leasehold
  kubectl rollout status -n $namespace deployment/leasehold --timeout=180s >/dev/null
  [ "$old" != "$(generation)" ] || { echo "the rollout made no new pods" >&2; exit 1; }
  until_held "^$(generation)-" >/dev/null
}
scale() {
  kubectl scale -n $namespace deployment/leasehold --replicas="$1"
  kubectl rollout status -n $namespace deployment/leasehold --timeout=180s >/dev/null
  until [ "$(kubectl get leases -n $namespace -l leasehold.dev/role=replica -o name | wc -l)" = "$1" ]; do sleep 0.1; done
}

say "A rolling restart: kubectl rollout restart deployment/leasehold"
note "before:"
spread
note "each kind moves once, to a new pod, as soon as that one has filled its cache:"
while_following roll
note "after:"
show

say "Down to one replica, and up to three again"
while_following scale 1
show
note "up again; once the replicas have settled, they share the kinds again:"
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
show

if [ -t 1 ]; then
  say "The cluster stays up until Ctrl-C. In another terminal:"
  echo "  export KUBECONFIG=$KUBECONFIG"
  echo "  export PATH=$(cd "$programs" && pwd):$(dirname "$kubectl"):\$PATH"
  echo "  leasehold status -n $namespace --via pod-address --watch"
  wait "$cluster"
else
  say "Done; taking the cluster down (on a terminal it would stay up)"
fi
