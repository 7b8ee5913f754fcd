package delta

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Header is what a patch says of itself in its first HeaderLen bytes. It is not
// authenticated.
type Header struct {
	OldDigest, NewDigest string // sha256, as 64 lower-case hex digits
	OldLength, NewLength int64
}

const (
	// HeaderLen is the length of a patch's header, in bytes.
	HeaderLen = 92

	magic   = "MOULTDLT"
	version = 1
)

// marshal returns the header as it stands in a patch.
func (h Header) marshal() ([]byte, error) {
	b := append(make([]byte, 0, HeaderLen), magic...)
	b = append(b, version, 0, 0, 0)
	for _, digest := range []string{h.OldDigest, h.NewDigest} {
		raw, err := hex.DecodeString(digest)
		if err != nil || len(raw) != 32 {
			return nil, fmt.Errorf("digest %q is no sha256 in hex", digest)
		}
		b = append(b, raw...)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(h.OldLength))
	return binary.LittleEndian.AppendUint64(b, uint64(h.NewLength)), nil
}

// ReadHeader reads the header of a patch, and no more. Errors: ErrMalformed,
// ErrVersion, the reader's.
func ReadHeader(patch io.Reader) (Header, error) {
	var b [HeaderLen]byte
	switch _, err := io.ReadFull(patch, b[:]); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Header{}, malformed("it ends within its header of %d bytes", HeaderLen)
	case err != nil:
		return Header{}, fmt.Errorf("read patch: %w", err)
	case !bytes.HasPrefix(b[:], []byte(magic)):
		return Header{}, malformed("it does not begin with %s", magic)
	case b[8] != version:
		return Header{}, fmt.Errorf("%w: %d, and this program knows %d; take the whole file", ErrVersion, b[8], version)
	case b[9]|b[10]|b[11] != 0:
		return Header{}, malformed("bytes 9 to 11 are not zero")
	}
	oldLen, newLen := binary.LittleEndian.Uint64(b[76:]), binary.LittleEndian.Uint64(b[84:])
	if oldLen > MaxFileLen || newLen > MaxFileLen {
		return Header{}, malformed("it is of files of %d and %d bytes; at most %d are possible", oldLen, newLen, MaxFileLen)
	}
	return Header{
		OldDigest: hex.EncodeToString(b[12:44]), NewDigest: hex.EncodeToString(b[44:76]),
		OldLength: int64(oldLen), NewLength: int64(newLen),
	}, nil
}
