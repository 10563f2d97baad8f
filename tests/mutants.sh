#!/usr/bin/env bash
# `make mutants`: changes one thing at a time in the code that decides, and counts the changes that no test notices.
# MUTANTS=protocol or engine for one of the two; SHARD=0/12 for every twelfth change. Reports are in target/mutants.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

which=${MUTANTS:-protocol engine}
shard=(--shard "${SHARD:-0/1}" --sharding round-robin)
target=${CARGO_TARGET_DIR:-$PWD/target}
out=$target/mutants

if ! cargo mutants --version >/dev/null 2>&1; then
  echo "make mutants needs cargo-mutants: cargo install --locked cargo-mutants" >&2
  exit 1
fi

# cargo-mutants ends with 2 if no test noticed a change and with 3 if tests hung: to find these is what it is for.
noticed() { [ "$1" = 2 ] || [ "$1" = 3 ]; }

# The protocol needs no cluster, no client and no runtime, so a crate of its own holds it, the configuration that it reads, and
# the simulation. That builds in seconds, where the whole program takes a minute for each change.
protocol() {
  local crate=$out/core
  rm -rf "$crate"
  mkdir -p "$crate/src" "$crate/tests/it"
  cp -r config "$crate/"
  cp -r src/config src/protocol "$crate/src/"
  cp -r tests/it/fleet tests/it/fleet.rs tests/it/explore.rs tests/it/timeline.rs "$crate/tests/it/"
  cp Cargo.lock "$crate/"
  printf 'pub mod %s;\n' config protocol >"$crate/src/lib.rs"
  printf 'mod %s;\n' explore fleet timeline >"$crate/tests/it/main.rs"
  {
    printf '[workspace]\n[package]\nname = "leasehold"\nversion = "0.0.0"\nedition = "2024"\n[dependencies]\n'
    grep -E '^(fastrand|jiff|schemars|serde|serde_json|serde_yaml|strsim|thiserror) = ' Cargo.toml
    printf '[dev-dependencies]\n'
    grep -E '^proptest = ' Cargo.toml
    printf '[profile.dev]\ndebug = false\n[profile.dev.package.leasehold]\nopt-level = 1\n'
  } >"$crate/Cargo.toml"
  # A few schedules of each scenario: a change that unit tests do not notice shows early or hardly ever.
  SEEDS=${SEEDS:-2} CARGO_TARGET_DIR=$out/core-target cargo mutants --dir "$crate" --in-place --output "$out/protocol" \
    --file 'src/protocol/**' --exclude '**/tests.rs' --cap-lints=true --timeout "${SLOWEST:-300}" "${shard[@]}" || noticed $?
}

# What the engine decides without IO: the plan of a pass, order, adoption, fights, what a child was last applied from, and what
# is due when.
engine() {
  local pure=() file
  for file in children/{adopt,applied,desired,fights,generated,order,ours,plan,pruned} due/{backoff,queue} writes/{asked,conditions}; do
    pure+=(--file "src/reconcile/$file.rs")
  done
  CARGO_TARGET_DIR=$out/engine-target cargo mutants --output "$out/engine" "${pure[@]}" --cap-lints=true --timeout "${SLOWEST:-300}" "${shard[@]}" \
    --cargo-arg "--config=profile.dev.package.leasehold.opt-level=0" -- --lib reconcile:: || noticed $?
}

mkdir -p "$out"
for part in $which; do
  case $part in
    protocol | engine) ;;
    *) echo "MUTANTS=$part: protocol or engine" >&2 && exit 2 ;;
  esac
  "$part"
done
