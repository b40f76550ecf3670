# The two commands: `make run` and `make test`. Both install what they need on Debian with Go, make and git.
SHELL := /bin/bash
BIN := $(CURDIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
DATA_DIR ?= /var/lib/berth
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
export CGO_ENABLED ?= 1

.PHONY: help run test build setup setup-tests unit component e2e kill kill-sample test-slow test-vm test-kubernetes test-kubernetes-sample lint fuzz bench bench-kubernetes image clean generate

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

run: setup build ## set everything up and run the main job on this machine; Ctrl-C stops, volumes stay mounted
	@$(SUDO) $(BIN)/berth up --data-dir $(DATA_DIR) --apply examples/quickstart.yaml

test: setup-tests build lint unit component e2e ## set everything up and run every test but the long ones

setup: ## install the Debian packages that are missing
	@scripts/setup.sh

setup-tests: ## and those that the tests call: Podman, fio
	@scripts/setup.sh --tests

build: ## all programs, into bin/
	@scripts/build.sh $(BIN) "$(VERSION)"

lint: ## gofmt, go vet, staticcheck, and the rule that every effect has a boundary
	@scripts/lint.sh

unit: ## tests that need no root, with the race detector
	go test -race $$(go list ./... | grep -v /test/)
	cd cmd/berth-apiserver && go test ./...
	cd deploy/image && go test ./...

component: setup-tests build ## tests on real loop devices, XFS and mounts; the chart on a real API server (root)
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) go test -tags component -count=1 -p 1 ./internal/...
	cd test/deploy && env BERTH_BIN=$(BIN) go test -count=1 ./...

e2e: setup-tests build ## one test per user story: the real `berth up`, driven by kubectl (root)
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) go test -count=1 -timeout 40m ./test/boundaries ./test/e2e

test-slow: setup-tests build ## mounts that take two minutes (root)
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) go test -tags slow -count=1 -timeout 10m -run TestMountsThatTakeTwoMinutes ./test/e2e

kill: setup-tests build ## kill -9 at every step boundary, all of them (root; long)
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) BERTH_KILL_SAMPLE=all BERTH_KILL_BATCH=12 go test -count=1 -timeout 120m -v ./test/kill

kill-sample: setup-tests build ## one of each room (root)
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) BERTH_KILL_SAMPLE=18 BERTH_KILL_BATCH=4 go test -count=1 -timeout 20m -v -run TestKillAtEveryBoundary ./test/kill

test-vm: setup build ## the FlexVolume drivers with kernel NFS, CIFS and LVM, in an emulated machine (root)
	@scripts/setup.sh --vm
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) go test -tags vm -count=1 -timeout 70m -v ./test/vm

test-kubernetes: setup build image ## in a real Kubernetes 1.36.3, built from its modules (root; the first time 20 minutes more)
	@scripts/setup.sh --kubernetes
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) BERTH_IMAGE=$(BIN)/berth-image.tar go test -tags kubernetes -count=1 -timeout 180m -v ./test/kubernetes

test-kubernetes-sample: setup build image ## one of each kind in it: examples, a killed agent, a killed kubelet (root; the first time 10 minutes more)
	@scripts/setup.sh --kubernetes
	$(SUDO) env "PATH=$$PATH" BERTH_BIN=$(BIN) BERTH_IMAGE=$(BIN)/berth-image.tar go test -tags kubernetes -count=1 -timeout 40m -v \
		-run '^(TestInstalledExamples|TestInstalledAgentIsKilled|TestBerthBlockOutlivesTheKubelet)$$/^(quickstart|snapshot|clone|expansion|statefulset|raw-block|flexvolume-block)\.yaml$$' ./test/kubernetes

fuzz: ## each fuzz target for 20 s
	@scripts/fuzz.sh 20s

bench: setup-tests build ## the figures as a table, with upstream's controllers in the same run (root)
	$(SUDO) env "PATH=$$PATH" go run ./test/bench -bin $(BIN)

bench-kubernetes: setup build image ## controller and node agent beside the official sidecars, as a table (root)
	$(SUDO) env "PATH=$$PATH" go run ./test/benchkubernetes -bin $(BIN) -image $(BIN)/berth-image.tar

image: build ## the container image as an OCI archive, bin/berth-image.tar, without a daemon
	@scripts/image.sh $(BIN)/berth-image.tar "$(VERSION)"

generate: ## copy the definitions anew from their modules, and make our own from api/
	go generate ./api/... ./internal/standalone
	cd test/deploy && go run ./generate

clean: ## remove bin/
	rm -rf $(BIN)
