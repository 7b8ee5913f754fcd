package main

// refuseForeignOwner refuses nothing: files inherit what the directory allows.
func refuseForeignOwner(string) error { return nil }
