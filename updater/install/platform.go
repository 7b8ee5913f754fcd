package install

import (
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"fmt"
	"io"
)

// platformOf reads what a binary was built for from its header. Empty strings:
// the header does not say (a script, an unknown machine); running it will tell.
func platformOf(r io.ReaderAt) (goos, arch string) {
	if f, err := elf.NewFile(r); err == nil {
		return elfPlatform(f)
	}
	if f, err := pe.NewFile(r); err == nil {
		return "windows", peArch[f.Machine]
	}
	if f, err := macho.NewFile(r); err == nil {
		return "darwin", machoArch[f.Cpu]
	}
	return "", ""
}

// elfPlatform names the arch; the system only where the header is explicit,
// because Linux binaries carry the same OS byte as several others'.
func elfPlatform(f *elf.File) (goos, arch string) {
	switch f.OSABI {
	case elf.ELFOSABI_FREEBSD:
		goos = "freebsd"
	case elf.ELFOSABI_NETBSD:
		goos = "netbsd"
	case elf.ELFOSABI_OPENBSD:
		goos = "openbsd"
	default:
		goos = "linux"
	}
	arch = elfArch[f.Machine]
	if little := f.ByteOrder.String() == "LittleEndian"; little && (arch == "mips" || arch == "mips64") {
		arch += "le"
	}
	if f.Machine == elf.EM_PPC64 && f.ByteOrder.String() == "LittleEndian" {
		arch = "ppc64le"
	}
	return goos, arch
}

var (
	elfArch = map[elf.Machine]string{
		elf.EM_X86_64: "amd64", elf.EM_386: "386", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm",
		elf.EM_PPC64: "ppc64", elf.EM_S390: "s390x", elf.EM_RISCV: "riscv64", elf.EM_LOONGARCH: "loong64",
		elf.EM_MIPS: "mips",
	}
	peArch = map[uint16]string{
		pe.IMAGE_FILE_MACHINE_AMD64: "amd64", pe.IMAGE_FILE_MACHINE_I386: "386", pe.IMAGE_FILE_MACHINE_ARM64: "arm64",
	}
	machoArch = map[macho.Cpu]string{
		macho.CpuAmd64: "amd64", macho.CpuArm64: "arm64", macho.Cpu386: "386",
	}
)

// checkPlatform compares the header with what this host is.
func checkPlatform(r io.ReaderAt, goos, arch string) error {
	gotOS, gotArch := platformOf(r)
	if gotOS == "" && gotArch == "" {
		return nil
	}
	if gotOS == goos && (gotArch == "" || gotArch == arch) {
		return nil
	}
	return fmt.Errorf("%w: the binary was built for %s/%s, this host is %s/%s; publish a release whose %s/%s artifact was built for that platform",
		ErrPreflight, gotOS, gotArch, goos, arch, goos, arch)
}
