package durable

// SyncDir does nothing: Windows has no sync of a directory, and NTFS journals
// renames in order.
func SyncDir(string) error { return nil }
