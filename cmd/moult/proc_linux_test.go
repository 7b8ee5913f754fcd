package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// memory is what a process has in memory, in bytes. Resident counts a page of its
// program's file whole, proportional by the number of processes that have it;
// private is what no other process has, and anonymous the part of it that lies
// nowhere else.
type memory struct{ Resident, Proportional, Private, Anonymous float64 }

func (m memory) plus(n memory) memory {
	return memory{m.Resident + n.Resident, m.Proportional + n.Proportional, m.Private + n.Private, m.Anonymous + n.Anonymous}
}

func memoryOf(t testing.TB, pid int) (m memory) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		var name string
		var kB float64
		if _, err := fmt.Sscanf(line, "%s %f kB", &name, &kB); err != nil {
			continue
		}
		switch name {
		case "Rss:":
			m.Resident = kB * 1024
		case "Pss:":
			m.Proportional = kB * 1024
		case "Private_Clean:", "Private_Dirty:":
			m.Private += kB * 1024
		case "Anonymous:":
			m.Anonymous = kB * 1024
		}
	}
	return m
}

// activity is what the threads of a process, together, have done since they began.
type activity struct {
	cpu      time.Duration
	switches float64 // context switches, wanted or not
}

func activityOf(t testing.TB, pid int) (a activity) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	must(t, err)
	for _, thread := range threads {
		text, err := os.ReadFile(filepath.Join(thread, "schedstat"))
		if err != nil {
			continue // it has ended; Go's threads seldom do
		}
		ran, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64) // ns
		must(t, err)
		a.cpu += time.Duration(ran)
		status, _ := os.ReadFile(filepath.Join(thread, "status"))
		for line := range strings.Lines(string(status)) {
			var n float64
			name, value, _ := strings.Cut(line, ":")
			if strings.HasSuffix(name, "voluntary_ctxt_switches") {
				_, err := fmt.Sscan(value, &n)
				must(t, err)
				a.switches += n
			}
		}
	}
	return a
}

// openFiles is how many descriptors a process has.
func openFiles(t testing.TB, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	return len(fds)
}
