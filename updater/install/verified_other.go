//go:build !linux

package install

// byDescriptor: there is no execution of an open file here. The staged file
// lies in the data directory, which only its owner can write; on Windows nobody
// can while it is open.
const byDescriptor = false
