package release

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// elfHeader is the beginning of an ELF file, as far as it says what runs it.
func elfHeader(class elf.Class, data elf.Data, abi elf.OSABI, machine elf.Machine) []byte {
	b := append([]byte(elf.ELFMAG), byte(class), byte(data), byte(elf.EV_CURRENT), byte(abi), 0, 0, 0, 0, 0, 0, 0, 0)
	var order binary.AppendByteOrder = binary.LittleEndian
	if data == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	b = order.AppendUint16(b, uint16(elf.ET_EXEC))
	return append(order.AppendUint16(b, uint16(machine)), make([]byte, 100)...)
}

func linuxELF(machine elf.Machine) []byte {
	return elfHeader(elf.ELFCLASS64, elf.ELFDATA2LSB, elf.ELFOSABI_NONE, machine)
}

// peFile is a DOS stub, and far behind it a PE header.
func peFile(machine uint16) []byte {
	const at = 5000 // beyond what is read at first
	b := make([]byte, at)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], at)
	return append(binary.LittleEndian.AppendUint16(append(b, "PE\x00\x00"...), machine), make([]byte, 20)...)
}

func machO(cpu macho.Cpu) []byte {
	b := binary.LittleEndian.AppendUint32(nil, macho.Magic64)
	return append(binary.LittleEndian.AppendUint32(b, uint32(cpu)), make([]byte, 24)...)
}

func universal(cpus ...macho.Cpu) []byte {
	b := binary.BigEndian.AppendUint32(nil, macho.MagicFat)
	b = binary.BigEndian.AppendUint32(b, uint32(len(cpus)))
	for _, cpu := range cpus {
		b = append(binary.BigEndian.AppendUint32(b, uint32(cpu)), make([]byte, 16)...)
	}
	return b
}

func TestBinaryPlatforms(t *testing.T) {
	type platforms = []Platform
	for name, tc := range map[string]struct {
		content []byte
		want    platforms
	}{
		"Linux amd64":         {linuxELF(elf.EM_X86_64), platforms{{anyUnix, "amd64"}}},
		"Linux arm64":         {linuxELF(elf.EM_AARCH64), platforms{{anyUnix, "arm64"}}},
		"Linux 386":           {elfHeader(elf.ELFCLASS32, elf.ELFDATA2LSB, elf.ELFOSABI_LINUX, elf.EM_386), platforms{{"linux", "386"}}},
		"Linux ppc64":         {elfHeader(elf.ELFCLASS64, elf.ELFDATA2MSB, elf.ELFOSABI_NONE, elf.EM_PPC64), platforms{{anyUnix, "ppc64"}}},
		"Linux ppc64le":       {linuxELF(elf.EM_PPC64), platforms{{anyUnix, "ppc64le"}}},
		"Linux mips":          {elfHeader(elf.ELFCLASS32, elf.ELFDATA2MSB, elf.ELFOSABI_NONE, elf.EM_MIPS), platforms{{anyUnix, "mips"}}},
		"Linux mips64le":      {linuxELF(elf.EM_MIPS), platforms{{anyUnix, "mips64le"}}},
		"FreeBSD":             {elfHeader(elf.ELFCLASS64, elf.ELFDATA2LSB, elf.ELFOSABI_FREEBSD, elf.EM_X86_64), platforms{{"freebsd", "amd64"}}},
		"an unknown machine":  {linuxELF(elf.EM_VAX), nil},
		"Windows amd64":       {peFile(pe.IMAGE_FILE_MACHINE_AMD64), platforms{{"windows", "amd64"}}},
		"Windows arm64":       {peFile(pe.IMAGE_FILE_MACHINE_ARM64), platforms{{"windows", "arm64"}}},
		"a DOS program":       {append([]byte("MZ"), make([]byte, 100)...), nil},
		"text that begins MZ": {[]byte("MZ is how it begins"), nil},
		"PE beyond the end":   {append([]byte("MZ"), bytes.Repeat([]byte{0xff}, 100)...), nil},
		"macOS arm64":         {machO(macho.CpuArm64), platforms{{"darwin", "arm64"}}},
		"macOS universal":     {universal(macho.CpuAmd64, macho.CpuArm64), platforms{{"darwin", "amd64"}, {"darwin", "arm64"}}},
		"a Java class":        {[]byte("\xca\xfe\xba\xbe\x00\x00\x00\x41 and so on"), nil},
		"universal, cut off":  {[]byte("\xca\xfe\xba\xbe\x00\x00\x00\x02"), nil},
		"a script":            {[]byte("#!/bin/sh\nexit 0\n"), nil},
		"one byte":            {[]byte("M"), nil},
		"ELF, cut off":        {[]byte("\x7fELF"), nil},
	} {
		got, err := BinaryPlatforms(bytes.NewReader(tc.content))
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := BinaryPlatforms(bytes.NewReader(nil)); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("empty: %v", err)
	}
}

func TestCheckPlatform(t *testing.T) {
	dir := t.TempDir()
	file := func(content []byte) string {
		path := filepath.Join(dir, "binary")
		must(t, os.WriteFile(path, content, 0o755))
		return path
	}
	linux := Platform{"linux", "amd64"}
	for name, tc := range map[string]struct {
		content []byte
		want    Platform
		ok      bool
	}{
		"right":                      {linuxELF(elf.EM_X86_64), linux, true},
		"ELF of another machine":     {linuxELF(elf.EM_AARCH64), linux, false},
		"ELF of another system":      {elfHeader(elf.ELFCLASS64, elf.ELFDATA2LSB, elf.ELFOSABI_FREEBSD, elf.EM_X86_64), linux, false},
		"PE for Linux":               {peFile(pe.IMAGE_FILE_MACHINE_AMD64), linux, false},
		"Mach-O for Linux":           {machO(macho.CpuAmd64), linux, false},
		"ELF for Windows":            {linuxELF(elf.EM_X86_64), Platform{"windows", "amd64"}, false},
		"ELF for macOS":              {linuxELF(elf.EM_X86_64), Platform{"darwin", "amd64"}, false},
		"PE right":                   {peFile(pe.IMAGE_FILE_MACHINE_ARM64), Platform{"windows", "arm64"}, true},
		"PE of another machine":      {peFile(pe.IMAGE_FILE_MACHINE_ARM64), Platform{"windows", "amd64"}, false},
		"Mach-O right":               {machO(macho.CpuArm64), Platform{"darwin", "arm64"}, true},
		"universal, one is right":    {universal(macho.CpuAmd64, macho.CpuArm64), Platform{"darwin", "arm64"}, true},
		"universal, none is right":   {universal(macho.CpuAmd64, macho.CpuArm64), linux, false},
		"a script says nothing":      {[]byte("#!/bin/sh\n"), linux, true},
		"a Unix ELF without its OS":  {linuxELF(elf.EM_X86_64), Platform{"dragonfly", "amd64"}, true},
		"an unknown machine, passes": {linuxELF(elf.EM_VAX), linux, true},
	} {
		err := tc.want.Check(file(tc.content))
		if tc.ok && err != nil || !tc.ok && (!errors.Is(err, ErrWrongPlatform) || !strings.Contains(err.Error(), "GOOS="+tc.want.OS+" GOARCH="+tc.want.Arch)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A real binary: this test.
	own, err := os.Executable()
	must(t, err)
	must(t, Platform{runtime.GOOS, runtime.GOARCH}.Check(own))
	if err := (Platform{"plan9", "riscv64"}).Check(own); !errors.Is(err, ErrWrongPlatform) {
		t.Errorf("this test runs on plan9: %v", err)
	}
	if err := linux.Check(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestParsePlatform(t *testing.T) {
	if p, err := ParsePlatform("linux/amd64"); err != nil || p != (Platform{"linux", "amd64"}) || p.String() != "linux/amd64" {
		t.Errorf("%v, %v", p, err)
	}
	for _, typed := range []string{"", "linux", "linux/", "/amd64", "linux/amd64/v2", "Linux/amd64", "linux amd64", "../x/amd64", "linux/amd64\n"} {
		if p, err := ParsePlatform(typed); err == nil || !strings.Contains(err.Error(), "give it as linux/amd64") {
			t.Errorf("%q: %v, %v", typed, p, err)
		}
	}
}
