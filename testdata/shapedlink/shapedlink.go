// Package shapedlink makes a link between network namespaces as slow as a real one,
// by htb. The benchmarks that run hosts in namespaces share it.
package shapedlink

import (
	"fmt"
	"os/exec"
	"strings"
)

const (
	// What leaves a host at once is as much as segmentation offload makes of it: a
	// trade between a wire's smoothness and what two cores can do for all hosts.
	burst       = 32 << 10 // bytes
	fastSegment = 32 << 10 // bytes, from fastMbit on
	slowSegment = 16 << 10
	fastMbit    = 50
	queueTime   = 50 // milliseconds that a full queue of a link takes
)

// End is one end of a veth pair: a device in a namespace.
type End struct{ Namespace, Device string }

// Shape gives both ends of a host's link a rate. The first end is the host's own. It
// takes root, ip, tc and sysctl.
func Shape(mbit int, host, port End) error {
	segment := slowSegment
	if mbit >= fastMbit {
		segment = fastSegment
	}
	rate := fmt.Sprintf("%dmbit", mbit)
	for _, e := range []End{host, port} {
		for _, argv := range [][]string{
			{"ip", "-n", e.Namespace, "link", "set", e.Device, "gso_max_size", fmt.Sprint(segment)},
			{"tc", "-n", e.Namespace, "qdisc", "add", "dev", e.Device, "root", "handle", "1:", "htb", "default", "1"},
			{"tc", "-n", e.Namespace, "class", "add", "dev", e.Device, "parent", "1:", "classid", "1:1", "htb", "rate", rate, "ceil", rate, "burst", fmt.Sprint(burst), "cburst", fmt.Sprint(burst)},
			{"tc", "-n", e.Namespace, "qdisc", "add", "dev", e.Device, "parent", "1:1", "bfifo", "limit", fmt.Sprint(queueTime * mbit * 1000 / 8)},
		} {
			if err := run(argv); err != nil {
				return err
			}
		}
	}
	return run([]string{"ip", "netns", "exec", host.Namespace, "sysctl", "-qw", fmt.Sprintf("net.ipv4.tcp_min_tso_segs=%d", segment/1500)})
}

func run(argv []string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
