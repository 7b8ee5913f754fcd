package nodekit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"moult/updater/artifact"
)

// maxHostsPerAddress is more than any limit in all, so that no product overflows.
const maxHostsPerAddress = 10_000

// ServeLimits are the bounds of what this host serves to others, and fetches, as
// flags.
type ServeLimits struct {
	Streams int
	Hosts   int      // that share one address
	rate    byteSize // per second
	Pull    byteSize // per second, of what this host fetches
	store   byteSize // that are kept of releases; servers keep all that are offered
}

func (l *ServeLimits) register(f *pflag.FlagSet) {
	f.IntVar(&l.Streams, "serve-streams", artifact.DefaultLimits.Streams, "artifacts served at once; others are told to ask elsewhere")
	f.Var(&l.rate, "serve-rate", "bytes per second that are served in all, such as 10MB; 0: no limit")
	f.IntVar(&l.Hosts, "hosts-per-address", 1, "how many hosts share one address, as behind NAT: the limits of connections by address are that many times as high")
	f.Var(&l.Pull, "pull-rate", "bytes per second that are fetched in all, for this host and as a relay for others, such as 1MB; 0: no limit")
}

// registerStore is for agents.
func (l *ServeLimits) registerStore(f *pflag.FlagSet) {
	l.store = artifact.DefaultLimit
	f.Var(&l.store, "store-limit", "bytes that are kept of releases, parts of them and patches, for a host's turn, for others and to go back, such as 500MB; an update's own artifact is fetched in any case; 0: no limit")
}

// Validate tells which limit makes no sense.
func (l ServeLimits) Validate() error {
	var errs []error
	if l.Streams < 1 {
		errs = append(errs, fmt.Errorf("--serve-streams is %d; give at least 1", l.Streams))
	}
	if l.Hosts < 1 || l.Hosts > maxHostsPerAddress {
		errs = append(errs, fmt.Errorf("--hosts-per-address is %d; give 1 to %d", l.Hosts, maxHostsPerAddress))
	}
	if l.Pull > 0 && l.Pull < artifact.MinPullRate {
		errs = append(errs, fmt.Errorf("--pull-rate is %s; give at least %s, or 0 for no limit: others would take this host for stuck", &l.Pull, ByteCount(artifact.MinPullRate)))
	}
	return errors.Join(errs...)
}

func (l ServeLimits) limits() artifact.Limits {
	return artifact.Limits{Streams: l.Streams, StreamsPerPeer: min(artifact.DefaultLimits.StreamsPerPeer, l.Streams), BytesPerSecond: int(l.rate)}
}

// byteSize is a flag's number of bytes, with a unit of 1000 (kB, MB, GB) or
// without.
type byteSize int64

var byteUnits = []struct {
	suffix string
	factor float64
}{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1}, {"", 1}}

// Set reads "10MB".
func (b *byteSize) Set(text string) error {
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(strings.TrimSpace(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(n >= 0 && n*u.factor <= 1e12) {
			break
		}
		*b = byteSize(n * u.factor)
		return nil
	}
	return fmt.Errorf("%q is not a number of bytes up to 1000GB; give one such as 500kB or 10MB", text)
}

func (b *byteSize) String() string {
	if *b == 0 {
		return "0"
	}
	return strings.ReplaceAll(ByteCount(int64(*b)), " ", "")
}

// Type names the kind of value in the help.
func (b *byteSize) Type() string { return "bytes" }
