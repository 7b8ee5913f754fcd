# moult: build, test and try it. `make help` lists the targets.

VERSION ?= dev
NUMBER  ?=
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BIN     ?= bin/moult
GO      ?= go
TESTFLAGS ?=
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.number=$(NUMBER)
FUZZTIME ?= 60s
GOBIN   := $(shell $(GO) env GOPATH)/bin

GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   = golang.org/x/vuln/cmd/govulncheck@v1.9.0
GOFUMPT       = mvdan.cc/gofumpt@v0.12.0
# Later ones take modules of a host of their own that not every proxy has.
NFPM          = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
DIST          = dist
KINDS         = deb rpm
PLATFORMS     = linux/amd64 linux/arm64 linux/arm windows/amd64 darwin/arm64

# The race detector links with a C compiler; without one the tests run without it.
RACE := $(if $(shell command -v $(or $(CC),gcc) 2>/dev/null),-race,)
NO_RACE_NOTE = $(if $(RACE),,@echo "no C compiler here: the tests run without the race detector; install gcc to have it")

# Packages whose tests drive goroutines against each other.
RACE_PKGS = ./mesh/... ./consensus/... ./updater/... ./webui/... ./cmd/...

# Long simulations, which the race detector does not survive (golang/go issue 78156).
SIMULATE = $(GO) test -timeout 30m -run 'TestTopologies|TestRosterConvergence' ./mesh

.PHONY: help build release packages test-packages e2e-systemd e2e-windows sbom vulncheck test race test-long faults fuzz e2e lint vet demo bench bench-distribution bench-rollout bench-failover bench-delta bench-scale bench-idle size bench-convergence bench-convergence-simulated screenshots pictures docs man clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Nothing of the machine gets into the binary: no path, no time, no state of a
# repository. The same source, VERSION, COMMIT and Go give the same bytes.
build: ## build $(BIN) with VERSION
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/moult

sbom: build ## the bill of materials of $(BIN), as $(BIN).cdx.json
	$(BIN) sbom > $(BIN).cdx.json

vulncheck: $(GOBIN)/govulncheck ## known vulnerabilities in what is built; needs vuln.go.dev
	@$(GOBIN)/govulncheck ./... || { code=$$?; [ $$code -eq 3 ] || \
	  echo "NOT CHECKED for known vulnerabilities: govulncheck did not get to its end (does this machine reach vuln.go.dev?)" >&2; exit $$code; }

test: ## all tests, race detector on, and the short end-to-end suite
	$(NO_RACE_NOTE)
	$(GO) vet ./...
	$(GO) test $(RACE) $(TESTFLAGS) -timeout 20m ./...
	$(SIMULATE) $(TESTFLAGS)

race: ## the concurrent packages' tests again, uncached
	$(GO) test -race -count=1 -timeout 20m $(RACE_PKGS)

test-long: ## what takes longer than `make test` allows
	$(NO_RACE_NOTE)
	MOULT_LONG=1 $(GO) test $(RACE) -count=1 -timeout 60m ./...
	MOULT_LONG=1 $(SIMULATE) -count=1

faults: ## the fault suite, for hours; docs/faults.md says how to run parts of it
	MOULT_FAULTS=1 $(GO) test -count=1 -v -p 1 -parallel 1 -timeout 48h -run 'TestFaults|TestLeaderChangeAtEachStep|TestPowerCut' ./cmd/moult ./consensus ./updater/install

fuzz: ## each fuzz target for FUZZTIME; `make test` runs their seeds
	@set -e; for file in $$(grep -rlE '^func Fuzz' --include='*_test.go' . | sort); do \
	  for target in $$(grep -oE '^func Fuzz\w+' $$file | cut -c6-); do \
	    echo "== $$(dirname $$file) $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$(dirname $$file); \
	  done; \
	done

e2e: ## the end-to-end suite alone, on real processes
	$(GO) test -count=1 -v -timeout 20m -run 'TestE2E' ./cmd/moult

vet: ## go vet for each platform
	GOOS=linux $(GO) vet ./...
	GOOS=windows $(GO) vet ./...
	GOOS=darwin $(GO) vet ./...
	cd mesh/convergence && $(GO) vet ./...

lint: vet $(GOBIN)/golangci-lint $(GOBIN)/gofumpt ## vet, golangci-lint, gofumpt, the import rules
	$(GOBIN)/golangci-lint run ./...
	cd mesh/convergence && $(GOBIN)/golangci-lint run --config $(CURDIR)/.golangci.yml ./...
	@test -z "$$($(GOBIN)/gofumpt -l .)" || { echo "run gofumpt -w on:"; $(GOBIN)/gofumpt -l .; exit 1; }
	$(GO) test -count=1 -run TestImportRules ./cmd/moult

$(GOBIN)/golangci-lint:
	GOFLAGS= $(GO) install $(GOLANGCI_LINT)

$(GOBIN)/govulncheck:
	GOFLAGS= $(GO) install $(GOVULNCHECK)

$(GOBIN)/gofumpt:
	GOFLAGS= $(GO) install $(GOFUMPT)

$(GOBIN)/nfpm:
	GOFLAGS= $(GO) install $(NFPM)

RELEASE = GO="$(GO)" COMMIT="$(COMMIT)" NUMBER="$(NUMBER)" NFPM=$(GOBIN)/nfpm ./cmd/moult/packaging/release.sh $(VERSION) $(DIST)

release: $(GOBIN)/nfpm ## archives, deb and rpm of VERSION for PLATFORMS, with checksums, in dist/; KEY=release.key signs
	@KEY="$(KEY)" $(RELEASE) $(PLATFORMS)

packages: $(GOBIN)/nfpm ## the deb and rpm of VERSION for this machine, in dist/
	@KINDS="$(KINDS)" $(RELEASE) linux/$$($(GO) env GOARCH)

test-packages: $(GOBIN)/nfpm ## packages of all platforms: the same bytes twice, and what lintian and rpm say
	MOULT_PACKAGES=1 $(GO) test -count=1 -v -timeout 20m -run 'TestPackages' ./cmd/moult

e2e-systemd: $(GOBIN)/nfpm ## packages on eight booted Debians with systemd; takes root and minutes
	MOULT_SYSTEMD=1 $(GO) test -count=1 -v -timeout 8m -run 'TestE2ESystemd' ./cmd/moult

e2e-windows: ## the agent as a Windows service, under Wine, in a cluster on Linux; takes minutes
	MOULT_WINE=1 $(GO) test -count=1 -v -timeout 10m -run 'TestE2EWindows' ./cmd/moult

demo: ## a cluster on loopback updates itself from A to B while its leader is killed
	@GO="$(GO)" ./testdata/demo.sh

bench: ## the benchmarks whose figures the README quotes
	$(GO) test -run '^$$' -bench . -benchtime 2s ./consensus/... ./updater/artifact ./webui ./cmd/moult
	MOULT_HOSTS=300 $(GO) test -count=1 -v -timeout 60m -run TestRosterConvergence ./mesh

bench-distribution: ## how fast a release spreads over shaped links, beside nginx and BitTorrent; needs root, ip, tc, nginx, curl, aria2
	MOULT_DISTRIBUTION=$(CURDIR)/build/bench-distribution.json $(GO) test -count=1 -v -timeout 60m -run 'TestDistribution$$' ./updater/artifact

bench-rollout: ## a fleet update of 8 hosts behind shaped links, beside ansible; a table, and build/bench-rollout.json; needs root, ip, tc, ansible, sshd, runit
	MOULT_BENCH_ROLLOUT=$(CURDIR)/build/bench-rollout.json $(GO) test -count=1 -v -timeout 60m -run 'TestBenchRollout$$' ./cmd/moult

bench-failover: ## from kill -9 of the leader to the next coordinator's first action, 30 times
	$(GO) test -run '^$$' -bench BenchmarkFailover -benchtime 1x -timeout 30m -v ./cmd/moult

bench-delta: ## patches of moult itself beside bsdiff and zstd; a table, and build/bench-delta.json
	MOULT_BENCH_DELTA=$(CURDIR)/build/bench-delta.json $(GO) test -count=1 -timeout 30m -run TestBenchDelta ./updater/delta -v

CONVERGENCE = $(CURDIR)/build/bench-convergence
bench-convergence: ## how soon servers know of changed records, beside memberlist's defaults and serf; minutes for each of nine pools, 6 GB
	rm -f $(CONVERGENCE).json
	cd mesh/convergence && MOULT_CONVERGENCE=$(CONVERGENCE).json MOULT_CONVERGENCE_SIMULATED=$(CONVERGENCE)-simulated.jsonl $(GO) test -count=1 -v -timeout 45m -run TestConvergence .

bench-convergence-simulated: export MOULT_HOSTS ?= 1000
bench-convergence-simulated: ## the same in a simulated pool of MOULT_HOSTS, for the next bench-convergence's table; of 1000: 10 minutes, 11 GB
	mkdir -p build && rm -f $(CONVERGENCE)-simulated.jsonl
	MOULT_CONVERGENCE_SIMULATED=$(CONVERGENCE)-simulated.jsonl $(GO) test -count=1 -v -timeout 60m -run 'TestRosterConvergence/one_pool' ./mesh

bench-idle: ## what a host at rest takes, alone and in a pool of 200, beside others; MOULT_IDLE_SOAK=8h for growth; packets need root
	MOULT_BENCH_IDLE=$(CURDIR)/build/bench-idle.json $(GO) test -count=1 -v -timeout 48h -run 'TestBenchIdle$$' ./cmd/moult

size: ## what each dependency adds to the binary
	MOULT_BENCH_SIZE=$(CURDIR)/build/size.json $(GO) test -count=1 -run 'TestBinarySizes$$' ./cmd/moult -v

bench-scale: ## what ten thousand hosts cost a server, beside a thousand; a table, and build/bench-scale.json; minutes
	MOULT_SCALE=$(CURDIR)/build/bench-scale.json $(GO) test -count=1 -v -timeout 60m -run 'TestScale$$' ./cmd/moult

screenshots: ## each page in light, dark and phone width, into build/screenshots
	MOULT_SCREENSHOTS=$(CURDIR)/build/screenshots $(GO) test -count=1 -run 'TestEveryPageIsAccessible' ./webui
	@ls build/screenshots

pictures: ## the pictures of the README, into docs/images; needs tmux and chromium
	GO="$(GO)" ./testdata/pictures.sh

docs: ## write docs/reference anew, of the code
	MOULT_DOCS=1 $(GO) test -count=1 -run TestReferenceIsUpToDate ./cmd/moult

# The pages' date is the last commit's, unless SOURCE_DATE_EPOCH says another.
MAN ?= build/man
man: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
man: ## manual pages, into $(MAN)
	MOULT_MAN=$(abspath $(MAN)) $(GO) test -count=1 -run TestManPages ./cmd/moult

clean: ## remove build output
	rm -rf bin dist build
