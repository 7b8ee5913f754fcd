//go:build !windows

// Package job is for Windows alone; see job_windows.go.
package job
