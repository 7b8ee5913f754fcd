package artifact

import "fmt"

const (
	megabyte = 1e6
	// spareSpace is kept free beyond what is fetched, in bytes: a full disk harms
	// a host more than a late update.
	spareSpace = 1 << 20
)

// describeDiskError turns a full disk into ErrDiskFull, saying how much is free;
// other errors pass.
func describeDiskError(dir string, err error) error {
	if !isDiskFull(err) {
		return err
	}
	room := "no space is left"
	if free, ok := freeSpace(dir); ok {
		room = fmt.Sprintf("%.1f MB are free", float64(free)/megabyte)
	}
	return fmt.Errorf("%w: %s in %s; free some space and start the update again: %w", ErrDiskFull, room, dir, err)
}

// checkSpace refuses to begin what cannot end. How much is free may not be
// known; then writing will tell.
func checkSpace(dir string, need int64) error {
	need += spareSpace
	free, ok := freeSpace(dir)
	if !ok || free >= need {
		return nil
	}
	return fmt.Errorf("%w: %.1f MB are needed, %.1f MB are free in %s; free some space and start the update again",
		ErrDiskFull, float64(need)/megabyte, float64(free)/megabyte, dir)
}
