package main

// refuseForeignPath leaves Windows' access control lists to whoever installs.
func refuseForeignPath(string) error { return nil }

// refuseForeignBinary is the same for the installed binary.
func refuseForeignBinary(string) error { return nil }
