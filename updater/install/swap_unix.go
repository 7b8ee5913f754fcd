//go:build unix

package install

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"moult/updater/internal/durable"
)

// place gives the copy the installed binary's rights, keeps the installed one as
// .old and moves the copy over it.
func (r SwapRequest) place(temp *os.File, installed string) error {
	dir := filepath.Dir(installed)
	steps := append(rightsOf(installed, temp),
		swapStep{"keep", func() error { return keepOld(installed) }},
		// .old is durable before the installed name changes: the last good binary
		// is kept, whatever the file system's order of renames.
		swapStep{"sync-keep", func() error { return durable.SyncDir(dir) }},
		swapStep{"rename", func() error { return os.Rename(temp.Name(), installed) }},
		swapStep{"sync-directory", func() error { return durable.SyncDir(dir) }},
	)
	if err := r.do(steps, installed); err != nil {
		return err
	}
	return r.step("done")
}

// rightsOf gives a copy the installed binary's rights, and makes it durable.
func rightsOf(installed string, temp *os.File) []swapStep {
	return []swapStep{
		// Owner before mode and attributes: changing the owner clears set-id bits
		// and capabilities.
		{"owner", func() error { return copyOwner(temp, installed) }},
		{"mode", func() error { return copyMode(temp, installed) }},
		{"attributes", func() error { return copyAttributes(temp, installed) }},
		{"sync", temp.Sync},
		// An open write descriptor would make the first start "text file busy".
		{"close", temp.Close},
	}
}

func copyOwner(temp *os.File, installed string) error {
	want, err := os.Stat(installed)
	if err != nil {
		return err
	}
	have, err := temp.Stat()
	if err != nil {
		return err
	}
	w, okW := want.Sys().(*syscall.Stat_t)
	h, okH := have.Sys().(*syscall.Stat_t)
	if !okW || !okH || (w.Uid == h.Uid && w.Gid == h.Gid) {
		return nil
	}
	return temp.Chown(int(w.Uid), int(w.Gid))
}

func copyMode(temp *os.File, installed string) error {
	st, err := os.Stat(installed)
	if err != nil {
		return err
	}
	return temp.Chmod(st.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky))
}

// keepOld makes NAME.old another name of the installed file, replacing an older
// one by a rename, so that there is always one. Where the file system has no
// hard links it is a copy.
func keepOld(installed string) error {
	temp, err := os.CreateTemp(filepath.Dir(installed), tempPrefix+"old-*")
	if err != nil {
		return err
	}
	defer temp.Close()
	link := temp.Name()
	if err := os.Remove(link); err != nil {
		return err
	}
	if err := os.Link(installed, link); err != nil {
		if !noHardLinks(err) {
			return err
		}
		if err := copyOld(installed, link); err != nil {
			os.Remove(link)
			return err
		}
	}
	if err := os.Rename(link, installed+".old"); err != nil {
		os.Remove(link)
		return err
	}
	// A rename between two names of one file does nothing, and leaves both.
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func noHardLinks(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) ||
		errors.Is(err, syscall.EMLINK) || errors.Is(err, syscall.ENOSYS)
}

func copyOld(installed, to string) error {
	src, err := os.Open(installed)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := errors.Join(copyOwner(dst, installed), copyMode(dst, installed), copyAttributes(dst, installed)); err != nil {
		return err
	}
	return dst.Sync()
}

// sweepAside: nothing is set aside on Unix.
func sweepAside(string) error { return nil }
