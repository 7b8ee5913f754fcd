package install

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrCorrupt: a checksummed file does not parse or its checksum is wrong.
var ErrCorrupt = errors.New("file is corrupt")

// sealedJSON is the shape of a checksummed file: sum is the sha256 of body.
type sealedJSON struct {
	Sum  string          `json:"sha256"`
	Body json.RawMessage `json:"body"`
}

// SaveSealed writes v as checksummed JSON, durably.
func SaveSealed(path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	sum := sha256.Sum256(body)
	file, err := json.Marshal(sealedJSON{Sum: hex.EncodeToString(sum[:]), Body: body})
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return WriteFile(path, append(file, '\n'))
}

// LoadSealed reads what SaveSealed wrote into v. It returns fs.ErrNotExist when
// there is no file and ErrCorrupt when it cannot be trusted, both wrapped.
func LoadSealed(path string, v any) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var sealed sealedJSON
	if err := json.Unmarshal(file, &sealed); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if sum := sha256.Sum256(sealed.Body); hex.EncodeToString(sum[:]) != sealed.Sum {
		return fmt.Errorf("%w: its checksum differs", ErrCorrupt)
	}
	if err := json.Unmarshal(sealed.Body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}
