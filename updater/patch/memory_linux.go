package patch

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// freeMemory is how many bytes this process can still take: of the machine, and
// of each control group (cgroup v2) that it is in. What cannot be read does not
// count.
func freeMemory() int64 { return freeMemoryOf("/proc", "/sys/fs/cgroup") }

func freeMemoryOf(proc, cgroups string) int64 {
	free := int64(math.MaxInt64)
	if kib, ok := field(path.Join(proc, "meminfo"), "MemAvailable:"); ok {
		free = kib << 10
	}
	group, err := os.ReadFile(path.Join(proc, "self/cgroup"))
	_, name, found := bytes.Cut(group, []byte("0::"))
	if err != nil || !found {
		return free
	}
	name, _, _ = bytes.Cut(name, []byte("\n"))
	for dir := path.Clean("/" + string(name)); ; dir = path.Dir(dir) {
		in := path.Join(cgroups, dir)
		used, ok := number(path.Join(in, "memory.current"))
		if cached, found := field(path.Join(in, "memory.stat"), "inactive_file"); found {
			used -= cached // the kernel takes that back before it refuses anything
		}
		for _, limit := range []string{"memory.max", "memory.high"} {
			if most, limited := number(path.Join(in, limit)); ok && limited {
				free = min(free, max(0, most-used))
			}
		}
		if dir == "/" {
			return free
		}
	}
}

// number reads a file of one number; "max" is none.
func number(file string) (int64, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return n, err == nil
}

// field reads the number behind a name from a file of such lines.
func field(file, name string) (int64, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == name {
			n, err := strconv.ParseInt(words[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
