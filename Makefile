# moult: build, test and try it. `make help` lists the targets.

VERSION ?= dev
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BIN     ?= bin/moult
GO      ?= go
TESTFLAGS ?=
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
GOBIN   := $(shell $(GO) env GOPATH)/bin

GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT       = mvdan.cc/gofumpt@v0.12.0

# The race detector links with a C compiler; without one the tests run without it.
RACE := $(if $(shell command -v $(or $(CC),gcc) 2>/dev/null),-race,)
NO_RACE_NOTE = $(if $(RACE),,@echo "no C compiler here: the tests run without the race detector; install gcc to have it")

# Packages whose tests drive goroutines against each other.
RACE_PKGS = ./mesh/... ./consensus/... ./updater/... ./webui/... ./cmd/...

.PHONY: help build test race test-long faults e2e lint vet demo bench screenshots clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## build $(BIN) with VERSION
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/moult

test: ## all tests, race detector on, and the short end-to-end suite
	$(NO_RACE_NOTE)
	$(GO) vet ./...
	$(GO) test $(RACE) $(TESTFLAGS) -timeout 14m ./...

race: ## the concurrent packages' tests again, uncached
	$(GO) test -race -count=1 -timeout 14m $(RACE_PKGS)

test-long: ## what takes longer than `make test` allows
	$(NO_RACE_NOTE)
	MOULT_LONG=1 $(GO) test $(RACE) -count=1 -timeout 60m ./...

faults: ## a cluster of real processes under faults, for hours; MOULT_FAULTS_SEED repeats a run
	MOULT_FAULTS=1 $(GO) test -count=1 -v -timeout 24h -run TestFaults ./cmd/moult

e2e: ## the end-to-end suite alone, on real processes
	$(GO) test -count=1 -v -timeout 14m -run 'TestE2E' ./cmd/moult

vet: ## go vet for each platform
	GOOS=linux $(GO) vet ./...
	GOOS=windows $(GO) vet ./...
	GOOS=darwin $(GO) vet ./...

lint: vet $(GOBIN)/golangci-lint $(GOBIN)/gofumpt ## vet, golangci-lint, gofumpt, the import rules
	$(GOBIN)/golangci-lint run ./...
	@test -z "$$($(GOBIN)/gofumpt -l .)" || { echo "run gofumpt -w on:"; $(GOBIN)/gofumpt -l .; exit 1; }
	$(GO) test -count=1 -run TestImportRules ./cmd/moult

$(GOBIN)/golangci-lint:
	GOFLAGS= $(GO) install $(GOLANGCI_LINT)

$(GOBIN)/gofumpt:
	GOFLAGS= $(GO) install $(GOFUMPT)

demo: ## a cluster on loopback updates itself from A to B while its leader is killed
	@GO="$(GO)" ./testdata/demo.sh

bench: ## the benchmarks whose figures the README quotes
	$(GO) test -run '^$$' -bench . -benchtime 2s ./consensus/... ./updater/artifact ./webui ./cmd/moult
	MOULT_HOSTS=300 $(GO) test -count=1 -v -timeout 60m -run TestRosterConvergence ./mesh

screenshots: ## each page in light, dark and phone width, into build/screenshots
	MOULT_SCREENSHOTS=$(CURDIR)/build/screenshots $(GO) test -count=1 -run 'TestEveryPageIsAccessible' ./webui
	@ls build/screenshots

clean: ## remove build output
	rm -rf bin dist build
