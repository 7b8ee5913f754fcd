package install

// syncDir does nothing: Windows has no sync of a directory; NTFS journals
// renames in order.
func syncDir(string) error { return nil }
