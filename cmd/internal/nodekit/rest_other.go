//go:build !linux

package nodekit

// dropProgramPages is for Linux. Elsewhere the system does it, or there is no way to.
func dropProgramPages() error { return nil }
