package patch

import (
	"errors"
	"os"
	"slices"
)

// Used counts the bytes of the patches that are held, and of those that come in.
func (s *Store) Used() (bytes int64) {
	for _, info := range s.files() {
		bytes += info.Size()
	}
	return bytes
}

// Drop deletes patches, the oldest first, until so many bytes are free or none is
// left. Patches that come in stay.
func (s *Store) Drop(bytes int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.files()
	slices.SortFunc(files, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	var errs []error
	for _, info := range files {
		if bytes <= 0 {
			break
		}
		if !validName(info.Name()) {
			continue
		}
		if err := ignoreMissing(os.Remove(s.path(info.Name()))); err != nil {
			errs = append(errs, err)
			continue
		}
		bytes -= info.Size()
	}
	return errors.Join(errs...)
}

func (s *Store) files() (files []os.FileInfo) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() { // else it has gone meanwhile
			files = append(files, info)
		}
	}
	return files
}
