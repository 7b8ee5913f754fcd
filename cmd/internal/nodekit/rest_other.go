//go:build !linux

package nodekit

// programPages is for Linux. Elsewhere the system does it, or there is no way to.
type programPages struct{}

func (programPages) drop() error { return nil }
