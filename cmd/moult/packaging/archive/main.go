// Command archive packs files into a .tar.gz or a .zip whose bytes depend on nothing
// but what is packed: not on the machine, its user or its clock.
//
//	archive -time UNIX_SECONDS -root DIR -out FILE NAME=PATH…
//
// Each PATH becomes DIR/NAME in the archive. What is executable stays so.
package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

type member struct {
	name, path string
	mode       fs.FileMode
	size       int64
}

func run(args []string) (err error) {
	flags := flag.NewFlagSet("archive", flag.ContinueOnError)
	out := flags.String("out", "", "archive to make: .tar.gz or .zip")
	root := flags.String("root", "", "directory in the archive")
	seconds := flags.Int64("time", 0, "time of all members, in seconds since 1970")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || *root == "" || flags.NArg() == 0 {
		return errors.New("give -out FILE, -root DIR and NAME=PATH…")
	}
	members, err := membersOf(*root, flags.Args())
	if err != nil {
		return err
	}
	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	at := time.Unix(*seconds, 0).UTC()
	switch {
	case strings.HasSuffix(*out, ".tar.gz"):
		return packTar(f, members, at)
	case strings.HasSuffix(*out, ".zip"):
		return packZip(f, members, at)
	}
	return fmt.Errorf("%s: the name has to end in .tar.gz or .zip", *out)
}

func membersOf(root string, args []string) ([]member, error) {
	var members []member
	for _, arg := range args {
		name, path, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, fmt.Errorf("%q: give NAME=PATH", arg)
		}
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		mode := fs.FileMode(0o644)
		if st.Mode()&0o111 != 0 {
			mode = 0o755
		}
		members = append(members, member{root + "/" + name, path, mode, st.Size()})
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	return members, nil
}

func packTar(w io.Writer, members []member, at time.Time) error {
	zipped, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	packed := tar.NewWriter(zipped)
	for _, m := range members {
		head := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Mode: int64(m.mode), Size: m.size, ModTime: at, Format: tar.FormatUSTAR}
		if err := packed.WriteHeader(head); err != nil {
			return err
		}
		if err := copyInto(packed, m.path); err != nil {
			return err
		}
	}
	return errors.Join(packed.Close(), zipped.Close())
}

func packZip(w io.Writer, members []member, at time.Time) error {
	packed := zip.NewWriter(w)
	for _, m := range members {
		head := &zip.FileHeader{Name: m.name, Method: zip.Deflate, Modified: at}
		head.SetMode(m.mode)
		part, err := packed.CreateHeader(head)
		if err != nil {
			return err
		}
		if err := copyInto(part, m.path); err != nil {
			return err
		}
	}
	return packed.Close()
}

func copyInto(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
