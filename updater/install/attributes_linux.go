package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// copyAttributes copies the extended attributes of installed, file capabilities
// (security.capability) and access control lists among them.
func copyAttributes(to *os.File, installed string) error {
	list, err := attributeBytes(func(b []byte) (int, error) { return unix.Listxattr(installed, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		if err := copyAttribute(to, installed, string(name)); err != nil {
			return err
		}
	}
	return nil
}

// capabilityAttribute holds what the program may do that its user may not: without
// it the copy would be another program.
const capabilityAttribute = "security.capability"

func copyAttribute(to *os.File, installed, name string) error {
	value, err := attributeBytes(func(b []byte) (int, error) { return unix.Getxattr(installed, name, b) })
	if errors.Is(err, unix.ENODATA) {
		return nil // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("read extended attribute %s: %w", name, err)
	}
	if err := unix.Fsetxattr(int(to.Fd()), name, value, 0); err == nil {
		return nil
	} else if have, getErr := attributeBytes(func(b []byte) (int, error) { return unix.Fgetxattr(int(to.Fd()), name, b) }); getErr == nil && bytes.Equal(have, value) {
		return nil // not ours to set, and right already: a security label by policy
	} else if errors.Is(err, unix.ENOTSUP) && name != capabilityAttribute {
		return nil // the other file system has none of its kind
	} else {
		return fmt.Errorf("set extended attribute %s: %w", name, err)
	}
}

// attributeBytes calls f with a buffer that is large enough; the size can change
// between the two calls.
func attributeBytes(f func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := f(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n)
		n, err = f(b)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}
