package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustKeys(t testing.TB) (public, secret string) {
	t.Helper()
	public, secret, err := GenerateKey()
	must(t, err)
	return public, secret
}

var created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// goodManifest uses every field.
func goodManifest() Manifest {
	expires := created.AddDate(1, 0, 0)
	return Manifest{
		Product: Product, Version: "1.2.3", Number: 7, Floor: 3, Rollback: true, MinFrom: 2, Created: created, Expires: &expires, Notes: "Faster.",
		Artifacts: []Artifact{
			{OS: "linux", Arch: "amd64", Size: 10, SHA256: strings.Repeat("a", 64)},
			{OS: "windows", Arch: "arm64", Size: 20, SHA256: strings.Repeat("b", 64)},
		},
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	must(t, err)
	return text
}

func mustSign(t testing.TB, secret string, manifest []byte) []byte {
	t.Helper()
	signature, err := Sign(secret, manifest)
	must(t, err)
	return signature
}

func TestParseRoundTrip(t *testing.T) {
	want := goodManifest()
	got, err := Parse(mustJSON(t, want))
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parsed %+v", got)
	}
	if a, ok := got.Artifact("windows", "arm64"); !ok || a.Size != 20 {
		t.Errorf("artifact %+v, %t", a, ok)
	}
	if _, ok := got.Artifact("linux", "arm64"); ok {
		t.Error("found an artifact that is not there")
	}
}

// A manifest is refused whole for anything that two readers could understand
// differently, or that no host could use.
func TestManifestBounds(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"product":                func(m *Manifest) { m.Product = "other" },
		"product missing":        func(m *Manifest) { m.Product = "" },
		"version":                func(m *Manifest) { m.Version = "" },
		"version with a slash":   func(m *Manifest) { m.Version = "../../etc" },
		"version is a directory": func(m *Manifest) { m.Version = ".." },
		"version is an option":   func(m *Manifest) { m.Version = "-rf" },
		"version with a newline": func(m *Manifest) { m.Version = "1\n2" },
		"version with a NUL":     func(m *Manifest) { m.Version = "1\x00" },
		"version too long":       func(m *Manifest) { m.Version = strings.Repeat("1", 65) },
		"number":                 func(m *Manifest) { m.Number = 0 },
		"floor":                  func(m *Manifest) { m.Floor = 8 },
		"min_from":               func(m *Manifest) { m.MinFrom, m.Rollback = 8, false },
		"notes":                  func(m *Manifest) { m.Notes = strings.Repeat("x", maxNotesBytes+1) },
		"artifacts":              func(m *Manifest) { m.Artifacts = nil },
		"artifacts too many": func(m *Manifest) {
			m.Artifacts = nil
			for i := range MaxArtifacts + 1 {
				m.Artifacts = append(m.Artifacts, Artifact{OS: "linux", Arch: fmt.Sprint("a", i), Size: 1, SHA256: strings.Repeat("a", 64)})
			}
		},
		"artifacts twice":            func(m *Manifest) { m.Artifacts[1].OS, m.Artifacts[1].Arch = "linux", "amd64" },
		"artifacts os with a slash":  func(m *Manifest) { m.Artifacts[0].OS = "../linux" },
		"artifacts os in capitals":   func(m *Manifest) { m.Artifacts[0].OS = "Linux" },
		"artifacts arch empty":       func(m *Manifest) { m.Artifacts[0].Arch = "" },
		"artifacts arch too long":    func(m *Manifest) { m.Artifacts[0].Arch = strings.Repeat("a", 33) },
		"artifacts size zero":        func(m *Manifest) { m.Artifacts[0].Size = 0 },
		"artifacts size negative":    func(m *Manifest) { m.Artifacts[0].Size = -1 },
		"artifacts size too large":   func(m *Manifest) { m.Artifacts[0].Size = MaxArtifactBytes + 1 },
		"artifacts sha256 short":     func(m *Manifest) { m.Artifacts[0].SHA256 = "ab" },
		"artifacts sha256 no hex":    func(m *Manifest) { m.Artifacts[0].SHA256 = strings.Repeat("g", 64) },
		"artifacts sha256 capitals":  func(m *Manifest) { m.Artifacts[0].SHA256 = strings.Repeat("A", 64) },
		"artifacts sha256 traversal": func(m *Manifest) { m.Artifacts[0].SHA256 = "../" + strings.Repeat("a", 61) },
	} {
		m := goodManifest()
		spoil(&m)
		field, _, _ := strings.Cut(name, " ")
		if _, err := Parse(mustJSON(t, m)); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestIsReadStrictly(t *testing.T) {
	good := string(mustJSON(t, goodManifest()))
	replace := func(old, with string) string {
		if strings.Count(good, old) < 1 {
			t.Fatalf("%q is not in the manifest", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	for name, tc := range map[string]struct{ text, says string }{
		"unknown field":             {replace(`{`, `{"mirror":"http://x",`), "mirror"},
		"unknown field of artifact": {replace(`{"os"`, `{"url":"http://x","os"`), "url"},
		"a field twice":             {replace(`"number":7`, `"number":7,"number":9`), `"number" is there twice`},
		"twice in an artifact":      {replace(`"size":10`, `"size":10,"size":11`), `"size" is there twice`},
		"twice, by an escape":       {replace(`"number":7`, `"number":7,"n\u0075mber":9`), `"number" is there twice`},
		"in another case":           {replace(`"number":7`, `"Number":7`), `"Number" is not known`},
		"both cases":                {replace(`"number":7`, `"number":7,"NUMBER":9`), `"NUMBER" is not known`},
		"folded by Unicode":         {replace(`"os"`, `"oſ"`), "is not known"},
		"bytes after it":            {good + `{}`, "after its end"},
		"a second manifest":         {good + good, "after its end"},
		"cut off":                   {good[:len(good)-1], "unexpected EOF"},
		"nothing":                   {"", "unexpected EOF"},
		"a list":                    {"[" + good + "]", "does not parse"},
		"null":                      {"null", "product"},
		"text for a number":         {replace(`"number":7`, `"number":"7"`), "does not parse"},
		"a fraction":                {replace(`"number":7`, `"number":7.5`), "does not parse"},
		"a negative number":         {replace(`"number":7`, `"number":-7`), "does not parse"},
		"beyond 64 bits":            {replace(`"number":7`, `"number":18446744073709551616`), "does not parse"},
		"nested":                    {replace(`"notes":"Faster."`, `"notes":`+strings.Repeat("[", 9)+strings.Repeat("]", 9)), "nests deeper"},
		"not a date":                {replace(`"created":"2026`, `"created":"yesterday`), "does not parse"},
		"too long":                  {good + strings.Repeat(" ", MaxManifestBytes), "at most"},
	} {
		if m, err := Parse([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	if _, err := Parse([]byte(" \n" + good + "\n")); err != nil {
		t.Errorf("white space around it: %v", err)
	}
}

// Invariants 1 and 2, as far as a manifest carries them: every field that
// decides what runs, or whether a host may go back, is under the signature.
func TestEachAlteredFieldIsNoticed(t *testing.T) {
	public, secret := mustKeys(t)
	good := goodManifest()
	text := mustJSON(t, good)
	signature := mustSign(t, secret, text)
	if got, err := Verify(Pinned(public), text, signature); err != nil || !reflect.DeepEqual(got, good) {
		t.Fatalf("verified %+v, %v", got, err)
	}
	var alter func(name string, v reflect.Value, m *Manifest)
	check := func(name string, m *Manifest) {
		altered := mustJSON(t, *m)
		if bytes.Equal(altered, text) {
			t.Fatalf("%s was not altered", name)
		}
		if _, err := Verify(Pinned(public), altered, signature); !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s altered: %v", name, err)
		}
	}
	fields := 0
	alter = func(name string, v reflect.Value, m *Manifest) {
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		fields++
		switch x := v.Interface().(type) {
		case string:
			v.SetString(x + "1")
		case uint64:
			v.SetUint(x + 1)
		case int64:
			v.SetInt(x + 1)
		case bool:
			v.SetBool(!x)
		case time.Time:
			v.Set(reflect.ValueOf(x.Add(time.Second)))
		case *time.Time:
			v.SetZero()
		case []Artifact:
			for i := range x {
				for f := range x[i].fields() {
					alter(fmt.Sprintf("artifact %d, %s", i, f), reflect.ValueOf(&x[i]).Elem().FieldByName(f), m)
				}
			}
			v.Set(reflect.ValueOf(x[:1]))
		default:
			t.Fatalf("%s has a type that this test does not alter", name)
		}
		check(name, m)
		v.Set(old)
	}
	m := goodManifest()
	for field := range reflect.TypeFor[Manifest]().Fields() {
		alter(field.Name, reflect.ValueOf(&m).Elem().FieldByName(field.Name), &m)
	}
	if fields != 10+2*6 {
		t.Errorf("%d fields were altered", fields)
	}
	for i := range text {
		altered := bytes.Clone(text)
		altered[i] ^= 1
		if _, err := Verify(Pinned(public), altered, signature); !errors.Is(err, ErrBadSignature) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
}

func (Artifact) fields() map[string]bool {
	names := map[string]bool{}
	for f := range reflect.TypeFor[Artifact]().Fields() {
		names[f.Name] = true
	}
	return names
}

func TestVerifyKeys(t *testing.T) {
	public, secret := mustKeys(t)
	next, nextSecret := mustKeys(t)
	stranger, _ := mustKeys(t)
	text := mustJSON(t, goodManifest())
	first, second := mustSign(t, secret, text), mustSign(t, nextSecret, text)
	line, err := ParsePublicKey(public)
	must(t, err)
	for name, tc := range map[string]struct {
		pinned    []string
		signature []byte
		want      error
	}{
		"pinned":                       {[]string{public}, first, nil},
		"pinned as its line":           {[]string{line}, first, nil},
		"two pinned, signed by one":    {[]string{public, next}, first, nil},
		"two pinned, by the other":     {[]string{public, next}, second, nil},
		"two pinned, other order":      {[]string{next, public}, first, nil},
		"beside a malformed one":       {[]string{"RWQx", public}, first, nil},
		"another key":                  {[]string{stranger}, first, ErrBadSignature},
		"a key that is pinned no more": {[]string{next}, first, ErrBadSignature},
		"no key":                       {nil, first, ErrNoReleaseKey},
		"only malformed keys":          {[]string{"", "RWQx", secret}, first, ErrNoReleaseKey},
		"no signature":                 {[]string{public}, nil, ErrBadSignature},
		"cut off":                      {[]string{public}, first[:len(first)-8], ErrBadSignature},
		"two signatures in one":        {[]string{public}, slices.Concat(second, first), nil},
		"two, neither pinned":          {[]string{stranger}, slices.Concat(first, second), ErrBadSignature},
		"too many in one":              {[]string{public}, slices.Repeat(first, MaxKeys+1), ErrBadSignature},
		"the trusted comment altered":  {[]string{public}, bytes.Replace(first, []byte("trusted comment: moult 1.2.3"), []byte("trusted comment: moult 9.9.9"), 1), ErrBadSignature},
	} {
		if m, err := Verify(Pinned(tc.pinned...), text, tc.signature); !errors.Is(err, tc.want) || tc.want == nil && (err != nil || m.Version != "1.2.3") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, err := range []error{ErrBadSignature, ErrNoReleaseKey, ErrEncryptedKey} {
		if len(err.Error()) < 20 {
			t.Errorf("%q says too little", err)
		}
	}
	// Signed, but no manifest of ours: a key signs other things too.
	for name, signedText := range map[string][]byte{
		"another product": mustJSON(t, func() Manifest { m := goodManifest(); m.Product = "skin"; return m }()),
		"no manifest":     []byte("hello\n"),
		"a later field":   bytes.Replace(text, []byte("{"), []byte(`{"delta":"x",`), 1),
	} {
		signature := signAnything(t, secret, signedText)
		if _, err := Verify(Pinned(public), signedText, signature); err == nil || errors.Is(err, ErrBadSignature) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Sign(secret, signedText); err == nil {
			t.Errorf("%s: Sign signs it", name)
		}
	}
	if _, err := Verify(Pinned(public), text, append(bytes.Clone(first), make([]byte, MaxSignatureBytes)...)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a signature too long: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(mustJSON(f, goodManifest()))
	f.Add([]byte(`{"product":"moult","version":"1","number":1,"created":"2026-03-01T12:00:00Z","artifacts":[{"os":"linux","arch":"amd64","size":1,"sha256":"` + strings.Repeat("0", 64) + `"}]}`))
	f.Add([]byte(`{"a":[[[[[[[[[]]]]]]]]]}`))
	f.Add([]byte(`{"number":1,"number":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		if m.validate() != nil || m.Product != Product {
			t.Fatalf("parsed out of bounds: %+v", m)
		}
		for _, a := range m.Artifacts {
			name := FileName(m.Version, Platform{a.OS, a.Arch})
			if filepath.Base(name) != name || !filepath.IsLocal(name) || strings.ContainsAny(name, "/\\:\x00") {
				t.Fatalf("an artifact's file is %q", name)
			}
		}
		// What one reader reads, another that is less strict reads too.
		var plain Manifest
		if err := json.Unmarshal(text, &plain); err != nil || !reflect.DeepEqual(plain, m) {
			t.Fatalf("two readers: %+v, %+v, %v", m, plain, err)
		}
		again, err := Parse(mustJSON(t, m))
		if err != nil || !again.Created.Equal(m.Created) || again.Version != m.Version || again.Number != m.Number {
			t.Fatalf("again: %+v, %v", again, err)
		}
	})
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}
