package convergence

import (
	"fmt"
	"strings"
)

// defaults returns memberlist's row of a size, if it was measured.
func defaults(results []result, size int) (result, bool) {
	for _, r := range results {
		if r.System == "memberlist" && r.Members == size {
			return r, true
		}
	}
	return result{}, false
}

// table prints the results as markdown. Ratios are against memberlist's defaults at
// the same size; where those came to no end, they are a bound.
func table(results []result) string {
	var b strings.Builder
	b.WriteString("| members | by | one change: servers | all members | ratio | all at once: servers | ratio | all members | mass restart: servers | one change takes | all at once takes | at rest takes |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		name := r.System
		if r.Simulated {
			name += ", simulated"
		}
		oneRatio, allRatio := "", ""
		if d, ok := defaults(results, r.Members); ok && r.System != d.System && !r.Simulated {
			oneRatio = fmt.Sprintf("%.3f ×", r.OneServers/d.OneServers)
			switch {
			case r.AllCapped:
			case d.AllCapped:
				allRatio = fmt.Sprintf("> %.0f × faster", d.All/r.All)
			default:
				allRatio = fmt.Sprintf("%.1f × faster", d.All/r.All)
			}
		}
		all := until(r.All, r.AllCapped)
		if r.AllCapped {
			all += fmt.Sprintf(" (%d seen)", r.AllSeen)
		}
		fmt.Fprintf(&b, "| %d | %s | %s (slowest %s) | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.Members, name, until(r.OneServers, false), until(r.OneSlowest, false),
			until(r.OneAll, r.OneAll >= oneCap.Seconds()), oneRatio, all, allRatio, until(r.AllAll, r.AllAllCap), restart(r), packets(r), r.AllCost, r.Rest)
	}
	return b.String()
}

func until(seconds float64, capped bool) string {
	switch {
	case capped:
		return fmt.Sprintf("> %.0f s", seconds)
	case seconds < 0.1:
		return fmt.Sprintf("%.1f ms", seconds*1e3)
	}
	return fmt.Sprintf("%.2f s", seconds)
}

func restart(r result) string {
	if r.Simulated {
		return ""
	}
	return until(r.Restart, r.RestartCap)
}

func packets(r result) string {
	if r.Simulated {
		return ""
	}
	return fmt.Sprintf("%.0f packets a member", r.OneCost)
}

func (c cost) String() string {
	if c == (cost{}) {
		return ""
	}
	return fmt.Sprintf("%.2f cores, %.1f packets/s, %.1f kB/s", c.Cores, c.Packets, c.Bytes/1e3)
}

// misses names the goals that were not reached.
func misses(results []result) (missed []string) {
	for _, r := range results {
		d, ok := defaults(results, r.Members)
		if r.System != "moult" || r.Simulated || !ok {
			continue
		}
		if ratio := r.OneServers / d.OneServers; ratio > maxOneRatio {
			missed = append(missed, fmt.Sprintf("%d members: one change takes %.2f of the time that it takes memberlist's defaults; at most %.2f is the goal", r.Members, ratio, maxOneRatio))
		}
		if ratio := d.All / r.All; r.Members == goalAllSize && ratio < minAllRatio {
			missed = append(missed, fmt.Sprintf("%d members: all at once is %.1f times faster than with memberlist's defaults; %d is the goal", r.Members, ratio, minAllRatio))
		}
	}
	return missed
}
