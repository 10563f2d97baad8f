.DEFAULT_GOAL := help
.PHONY: help build demo test soak mutants lint bench contend cluster release image clean

help: ## Show what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

build: ## Build the program: target/release/leasehold
	@cargo build --locked --release --features cli,jemalloc

demo: ## See three replicas on a real control plane share their kinds, and one of them die
	@tests/demo.sh

test: ## Prove the safety rules: unit tests, simulation, acceptance on a real control plane
	@.ci/run cluster test

soak: ## Play a million random schedules of the simulation on all processors, compare as many expressions with cel-go, and try as many inputs of each fuzz target (hours; SOAK=1000 for fewer)
	@SOAK=$${SOAK:-1000000} EXPLORE=$${EXPLORE:-500000} cargo test --locked --profile soak --test it soak_ -- --nocapture --test-threads 1
	@FUZZ=$${FUZZ:-$${SOAK:-1000000}} cargo test --locked --profile soak --test it fuzz_ -- --nocapture
	@CEL_COMPARE=$${CEL_COMPARE:-$${SOAK:-1000000}} cargo test --locked --profile soak --lib generated_expressions -- --nocapture

mutants: ## Change one thing at a time in what decides, and count the changes that no test notices (hours; SHARD=0/12 for a sample)
	@tests/mutants.sh

lint: ## Check formatting, lints and documentation
	@.ci/run fmt clippy doc

bench: ## Measure spread, handover, failover, load and composed kinds on a real control plane, beside client-go and controller-runtime, and what becomes of kinds beside a grey replica (90 minutes; ARGS='--quick')
	@cargo build --locked --release --example replica
	@cargo bench --locked --bench figures -- $(ARGS)

contend: ## Contend with client-go's electors for a Lease, a ConfigMap and both, a thousand takeovers each (TAKEOVERS=100 for fewer)
	@cargo build --locked --example observer
	@TAKEOVERS=$${TAKEOVERS:-1000} cargo test --locked --test acceptance contends_ -- --nocapture

cluster: ## Start a control plane on this machine and keep it until Ctrl-C
	@cargo run --locked --quiet --package leasehold-cluster -- up

release: ## Make a release in dist/: notes, binary, image, chart, CRDs, manifests, SBOM, checksums (ARGS=--dry-run for what needs no compiler)
	@.ci/release $(ARGS)

image: ## Build the container image leasehold:0.1.0 as target/image/leasehold-0.1.0.tar; needs no container engine
	@rm -rf target/image
	@deploy/image/build.sh target/image/root target/image
	@deploy/image/oci.sh target/image/root leasehold:0.1.0 target/image/leasehold-0.1.0.tar
	@echo "target/image/leasehold-0.1.0.tar is the image: docker load -i FILE, podman load -i FILE, kind load image-archive FILE,"
	@echo "ctr -n k8s.io images import FILE, or to a registry: skopeo copy oci-archive:FILE docker://registry.example.com/leasehold:0.1.0"

clean: ## Remove what was built in this folder, the control plane's binaries apart
	cargo clean
