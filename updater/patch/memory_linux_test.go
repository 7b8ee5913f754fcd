package patch

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestFreeMemory(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"nothing can be read": {nil, math.MaxInt64},
		"no group":            {map[string]string{"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    2048 kB\n"}, 2 * mib},
		"a group without a limit": {map[string]string{
			"proc/meminfo": "MemAvailable: 2048 kB\n", "proc/self/cgroup": "0::/system.slice/moult.service\n",
			"cgroup/system.slice/moult.service/memory.current": "5\n", "cgroup/system.slice/moult.service/memory.max": "max\n",
		}, 2 * mib},
		"the group's limit, with what is cached given back": {map[string]string{
			"proc/meminfo": "MemAvailable: 9000000 kB\n", "proc/self/cgroup": "0::/system.slice/moult.service\n",
			"cgroup/system.slice/moult.service/memory.current": "7340032\n", "cgroup/system.slice/moult.service/memory.max": "8388608\n",
			"cgroup/system.slice/moult.service/memory.stat": "anon 1\ninactive_file 2097152\n",
		}, 3 * mib},
		"a group above is nearer to its limit": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/moult.service\n",
			"cgroup/system.slice/moult.service/memory.current": "0\n", "cgroup/system.slice/moult.service/memory.max": "8388608\n",
			"cgroup/system.slice/memory.current": "2097152\n", "cgroup/system.slice/memory.high": "3145728\n",
		}, mib},
		"a container's own group, beyond its limit": {map[string]string{
			"proc/self/cgroup":      "1:name=systemd:/\n0::/\n",
			"cgroup/memory.current": "9\n", "cgroup/memory.max": "8\n",
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				path := filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := freeMemoryOf(filepath.Join(dir, "proc"), filepath.Join(dir, "cgroup")); got != c.want {
				t.Errorf("%d bytes, want %d", got, c.want)
			}
		})
	}
	if got := freeMemory(); got <= 0 || got == math.MaxInt64 {
		t.Errorf("of this machine: %d bytes", got)
	}
}
