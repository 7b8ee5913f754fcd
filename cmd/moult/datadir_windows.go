package main

// refuseForeignPath leaves Windows' access control lists to whoever installs.
func refuseForeignPath(string) error { return nil }

// refuseForeignOwner refuses nothing: files inherit what the directory allows.
func refuseForeignOwner(string) error { return nil }
// refuseForeignBinary is the same for the installed binary.
func refuseForeignBinary(string) error { return nil }
