package release

import (
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Platform names what a build runs on, in Go's words: GOOS and GOARCH.
type Platform struct{ OS, Arch string }

// ParsePlatform reads "linux/amd64".
func ParsePlatform(s string) (Platform, error) {
	goos, arch, _ := strings.Cut(s, "/")
	p := Platform{goos, arch}
	if !p.valid() {
		return Platform{}, fmt.Errorf("%q is not a platform; give it as linux/amd64", s)
	}
	return p, nil
}

func (p Platform) String() string { return p.OS + "/" + p.Arch }

// valid: the two words are shaped as GOOS and GOARCH are. Which pairs there are
// is left open, so that an old host reads a manifest that names a new platform.
func (p Platform) valid() bool {
	for _, word := range []string{p.OS, p.Arch} {
		if word == "" || len(word) > maxWordBytes || !onlyOf(word, lower+digits) {
			return false
		}
	}
	return true
}

// anyUnix is the system of an ELF file that does not say which one it is for.
const anyUnix = "unix"

// runs tells whether a binary found to be built for p runs on want.
func (p Platform) runs(want Platform) bool {
	sameOS := p.OS == want.OS || p.OS == anyUnix && !slices.Contains([]string{"windows", "darwin", "ios"}, want.OS)
	return sameOS && p.Arch == want.Arch
}

// Check returns ErrWrongPlatform, wrapped, when a file is an ELF, PE or Mach-O
// binary of another platform than p. A script, or a machine that is not known
// here, passes: only running it can tell.
func (p Platform) Check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	found, err := BinaryPlatforms(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(found) == 0 || slices.ContainsFunc(found, func(b Platform) bool { return b.runs(p) }) {
		return nil
	}
	return fmt.Errorf("%w: %s is a binary for %s, not %s; build it with GOOS=%s GOARCH=%s",
		ErrWrongPlatform, path, found[0], p, p.OS, p.Arch)
}

// BinaryPlatforms reads out of a header what a binary was built for: one
// platform, several for a universal Mach-O file, none when the file is no binary
// or its machine is not known. An ELF file that does not say which Unix it is
// for has the OS "unix". It reads at most 4 KiB; an error means that the file
// cannot be read or is empty.
func BinaryPlatforms(r io.ReaderAt) ([]Platform, error) {
	head := make([]byte, 4<<10)
	n, err := r.ReadAt(head, 0)
	if n == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty")
		}
		return nil, err
	}
	// Fields beyond a short file's end read as zero, which names no machine.
	switch magic := string(head[:4]); {
	case magic == elf.ELFMAG:
		return known(elfPlatform(head)), nil
	case magic[:2] == "MZ":
		return known(pePlatform(r, head)), nil
	default:
		return machoPlatforms(head), nil
	}
}

// known drops a platform whose machine is not known.
func known(p Platform) []Platform {
	if p.Arch == "" {
		return nil
	}
	return []Platform{p}
}

var elfArch = map[elf.Machine]string{
	elf.EM_X86_64: "amd64", elf.EM_386: "386", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm",
	elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x", elf.EM_LOONGARCH: "loong64",
}

// elfBothWays are machines whose Go name tells the byte order.
var elfBothWays = map[elf.Machine]string{elf.EM_PPC64: "ppc64", elf.EM_MIPS: "mips"}

func elfPlatform(head []byte) Platform {
	p := Platform{OS: anyUnix}
	switch elf.OSABI(head[elf.EI_OSABI]) {
	case elf.ELFOSABI_FREEBSD:
		p.OS = "freebsd"
	case elf.ELFOSABI_NETBSD:
		p.OS = "netbsd"
	case elf.ELFOSABI_OPENBSD:
		p.OS = "openbsd"
	case elf.ELFOSABI_LINUX:
		p.OS = "linux"
	}
	const machineOffset = 18 // e_ident[16], e_type
	var order binary.ByteOrder = binary.LittleEndian
	suffix := "le"
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order, suffix = binary.BigEndian, ""
	}
	machine := elf.Machine(order.Uint16(head[machineOffset:]))
	p.Arch = elfArch[machine]
	if name, ok := elfBothWays[machine]; ok {
		if machine == elf.EM_MIPS && elf.Class(head[elf.EI_CLASS]) == elf.ELFCLASS64 {
			name = "mips64"
		}
		p.Arch = name + suffix
	}
	return p
}

func pePlatform(r io.ReaderAt, head []byte) Platform {
	const headerOffset = 0x3c
	var sig [6]byte // "PE\0\0", machine
	if _, err := r.ReadAt(sig[:], int64(binary.LittleEndian.Uint32(head[headerOffset:]))); err != nil || string(sig[:4]) != "PE\x00\x00" {
		return Platform{} // a DOS program, or text that begins with MZ
	}
	return Platform{"windows", map[uint16]string{
		pe.IMAGE_FILE_MACHINE_AMD64: "amd64", pe.IMAGE_FILE_MACHINE_I386: "386", pe.IMAGE_FILE_MACHINE_ARM64: "arm64",
	}[binary.LittleEndian.Uint16(sig[4:])]}
}

var machoArch = map[macho.Cpu]string{macho.CpuAmd64: "amd64", macho.CpuArm64: "arm64", macho.Cpu386: "386"}

func machoPlatforms(head []byte) (found []Platform) {
	add := func(cpu uint32) {
		found = append(found, known(Platform{"darwin", machoArch[macho.Cpu(cpu)]})...)
	}
	switch little, big := binary.LittleEndian.Uint32(head), binary.BigEndian.Uint32(head); {
	case little == macho.Magic64 || little == macho.Magic32:
		add(binary.LittleEndian.Uint32(head[4:]))
	case big == macho.MagicFat: // also the magic of a Java class, whose next word is no small count
		const entryLen, maxEntries = 20, 16
		count := binary.BigEndian.Uint32(head[4:])
		if count > maxEntries {
			return nil
		}
		for i := range int(count) {
			add(binary.BigEndian.Uint32(head[8+i*entryLen:]))
		}
	}
	return found
}
