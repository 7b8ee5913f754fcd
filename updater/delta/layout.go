package delta

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/binary"
	"slices"
)

// describe finds what a patch says of two executables of the same format and
// machine. Of anything else it returns the empty layout: nothing is predicted
// then.
func describe(old, new []byte) layout {
	a, b := readImage(old), readImage(new)
	if a == nil || b == nil || a.code != b.code || len(a.segments) > maxSegments || len(b.segments) > maxSegments {
		return layout{}
	}
	l := layout{oldSegments: a.segments, newSegments: b.segments}
	add := func(from, to uint64, kind refKind) {
		if to = min(to, uint64(len(old))); from < to {
			l.regions = append(l.regions, region{int64(from), int64(to), kind})
		}
	}
	for _, s := range a.sections {
		add(s.from, s.to, s.kind)
	}
	goOld, goNew := a.goTables(old), b.goTables(new)
	if goOld != nil && goNew != nil {
		l.oldBases, l.newBases = goOld.bases, goNew.bases
		carve := func(from, to uint64, kind refKind) {
			var out []region
			for _, r := range l.regions {
				if uint64(r.begin) >= to || uint64(r.end) <= from {
					out = append(out, r)
					continue
				}
				if uint64(r.begin) < from {
					out = append(out, region{r.begin, int64(from), r.kind})
				}
				if uint64(r.end) > to {
					out = append(out, region{int64(to), r.end, r.kind})
				}
			}
			l.regions = out
			if kind != 0 {
				add(from, to, kind)
			}
		}
		carve(goOld.pclntab, goOld.end, 0)
		add(goOld.functab, goOld.records, goFunctab)
		add(goOld.records, goOld.end, goFuncs)
		if goOld.types < goOld.typesEnd {
			carve(goOld.types, goOld.typesEnd, goTypes)
		}
	}
	slices.SortFunc(l.regions, func(a, b region) int { return int(a.begin - b.begin) })
	if len(l.regions) > maxRegions {
		return layout{}
	}
	return l
}

// image is an executable file, as far as the predictor cares.
type image struct {
	code     refKind
	segments []segment
	sections []section
}

type section struct {
	from, to uint64 // in the file
	kind     refKind
}

func readImage(b []byte) *image {
	if f, err := elf.NewFile(bytes.NewReader(b)); err == nil {
		return elfImage(f)
	}
	if f, err := macho.NewFile(bytes.NewReader(b)); err == nil {
		return machoImage(f)
	}
	if f, err := pe.NewFile(bytes.NewReader(b)); err == nil {
		return peImage(f)
	}
	return nil
}

func elfImage(f *elf.File) *image {
	var m image
	switch {
	case f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian:
		return nil
	case f.Machine == elf.EM_X86_64:
		m.code = codeAMD64
	case f.Machine == elf.EM_AARCH64:
		m.code = codeARM64
	default:
		return nil
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		m.segments = append(m.segments, segment{p.Off, p.Vaddr, p.Filesz, p.Memsz})
		kind := pointers
		if p.Flags&elf.PF_X != 0 {
			kind = m.code
		}
		m.sections = append(m.sections, section{p.Off, p.Off + p.Filesz, kind})
	}
	return &m
}

func machoImage(f *macho.File) *image {
	var m image
	switch f.Cpu {
	case macho.CpuAmd64:
		m.code = codeAMD64
	case macho.CpuArm64:
		m.code = codeARM64
	default:
		return nil
	}
	for _, l := range f.Loads {
		if s, ok := l.(*macho.Segment); ok && s.Memsz > 0 && s.Filesz > 0 {
			m.segments = append(m.segments, segment{s.Offset, s.Addr, s.Filesz, s.Memsz})
		}
	}
	for _, s := range f.Sections {
		kind := pointers
		if s.Name == "__text" {
			kind = m.code
		}
		if s.Offset != 0 {
			m.sections = append(m.sections, section{uint64(s.Offset), uint64(s.Offset) + s.Size, kind})
		}
	}
	return &m
}

func peImage(f *pe.File) *image {
	var m image
	switch f.Machine {
	case pe.IMAGE_FILE_MACHINE_AMD64:
		m.code = codeAMD64
	case pe.IMAGE_FILE_MACHINE_ARM64:
		m.code = codeARM64
	default:
		return nil
	}
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil
	}
	for _, s := range f.Sections {
		m.segments = append(m.segments, segment{uint64(s.Offset), h.ImageBase + uint64(s.VirtualAddress), uint64(s.Size), uint64(s.VirtualSize)})
		kind := pointers
		if s.Characteristics&pe.IMAGE_SCN_MEM_EXECUTE != 0 {
			kind = m.code
		}
		m.sections = append(m.sections, section{uint64(s.Offset), uint64(s.Offset) + uint64(s.Size), kind})
	}
	return &m
}

// goTables are where a Go executable has its tables; offsets in the file.
type goTables struct {
	pclntab, functab, records, end uint64
	types, typesEnd                uint64
	bases                          bases
}

// goTables finds pclntab by its magic number, and moduledata by a pointer to it.
func (m *image) goTables(b []byte) *goTables {
	magic := binary.LittleEndian.AppendUint32(nil, goMagic)
	for at := 0; ; at++ {
		n := bytes.Index(b[at:], magic)
		if n < 0 {
			return nil
		}
		at += n
		if at%8 == 0 && at+8*8 < len(b) && b[at+4] == 0 && b[at+5] == 0 && b[at+7] == 8 {
			if t := m.moduleOf(b, uint64(at)); t != nil {
				return t
			}
		}
	}
}

const (
	goMagic     = 0xfffffff1 // of pclntab since Go 1.20
	moduleWords = 41         // of moduledata, as far as they are looked at
)

// Words of moduledata, by Go 1.20 to 1.26; where a newer one differs the tables do
// not fit, and are left alone.
func (m *image) moduleOf(b []byte, pclntab uint64) *goTables {
	le := binary.LittleEndian
	addr := addrOf(m.segments, int64(pclntab))
	word := func(at uint64, i int) uint64 { return le.Uint64(b[at+uint64(8*i):]) }
	for _, s := range m.segments {
		for at := s.off; at+8*moduleWords < s.off+s.fileLen && at+8*moduleWords < uint64(len(b)); at += 8 {
			if word(at, 0) != addr || word(at, 2) != word(at, 3) {
				continue
			}
			t := &goTables{pclntab: pclntab}
			back := func(v uint64) uint64 { return v - addr + pclntab }
			t.bases = bases{
				names: word(at, 1), units: word(at, 4), files: word(at, 7), counters: word(at, 10),
				funcs: word(at, 13), text: word(at, 22), types: word(at, 37), funcdata: word(at, 40),
			}
			nfunc := word(pclntab, 1)
			if t.types, t.typesEnd = back(word(at, 37)), back(word(at, 38)); t.typesEnd > uint64(len(b)) || t.types > t.typesEnd {
				t.types, t.typesEnd = 0, 0
			}
			t.functab = back(t.bases.funcs)
			t.records = t.functab + nfunc*8 + 4
			t.end = t.functab + word(at, 14)
			if nfunc > maxFuncs || t.functab < pclntab || t.records > t.end || t.end > uint64(len(b)) {
				continue
			}
			return t
		}
	}
	return nil
}
