//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// children are those of a process, as an agent is its supervisor's, and a trial a
// server's. One that has ended has none.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// childOf is a process's first child; 0: it has none.
func childOf(pid int) int {
	if pids := children(pid); len(pids) > 0 {
		return pids[0]
	}
	return 0
}
