package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var taken = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// content is an artifact's bytes, by digest.
var content = func() map[string][]byte {
	out := map[string][]byte{}
	for _, b := range [][]byte{bytes.Repeat([]byte("one "), 40_000), []byte("two")} {
		sum := sha256.Sum256(b)
		out[hex.EncodeToString(sum[:])] = b
	}
	return out
}()

// furnished is a state with two releases, one of them withdrawn.
func furnished(t testing.TB) fleet.View {
	t.Helper()
	s := fleet.New()
	apply := func(c fleet.Change) {
		index := s.View().Index() + 1
		e, err := fleet.NewEntry(fmt.Sprint("p", index), "system", taken, c)
		must(t, err)
		if r := s.Apply(index, e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	apply(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1", CAKey: []byte("the key of the CA")}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	})
	number := uint64(0)
	for digest, b := range content {
		number++
		for _, version := range []string{"", "-again"} { // the same bytes under two names
			number++
			apply(fleet.ReleasePublished{Release: fleet.Release{
				Version: digest[:8] + version, Number: number,
				Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: int64(len(b)), SHA256: digest}},
			}})
		}
	}
	apply(fleet.ReleasePublished{Release: fleet.Release{
		Version: "old", Number: 99, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: strings.Repeat("a", 64)}},
	}})
	apply(fleet.ReleaseWithdrawn{Version: "old"})
	return s.View()
}

func open(digest string) (io.ReadCloser, error) {
	b, ok := content[digest]
	if !ok {
		return nil, errors.New("not held")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func plain(t testing.TB, v fleet.View) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, Write(&b, Header{TakenAt: taken, Server: "server-1", Moult: "1.0.0", Artifacts: Wanted(v)}, v, open))
	return b.Bytes()
}

func encrypted(t testing.TB, key Key, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := key.Encrypt(&b)
	must(t, err)
	_, err = w.Write(text)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

func read(key Key, file []byte) (Header, error) {
	r, err := key.Decrypt(bytes.NewReader(file))
	if err != nil {
		return Header{}, err
	}
	return Read(r, Contents{})
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	v := furnished(t)
	key, public, err := NewKey()
	must(t, err)
	to, err := ParseRecipient(public + "\n")
	must(t, err)
	r, err := key.Decrypt(bytes.NewReader(encrypted(t, to, plain(t, v))))
	must(t, err)
	restored, held := fleet.New(), map[string][]byte{}
	h, err := Read(r, Contents{
		State: restored.Restore,
		Artifact: func(a Artifact, r io.Reader) (err error) {
			held[a.SHA256], err = io.ReadAll(r)
			return err
		},
	})
	must(t, err)
	if restored.Hash() != v.Hash() {
		t.Error("the state is another one")
	}
	if h.ClusterID != "c1" || h.Index != v.Index() || h.Server != "server-1" || !h.TakenAt.Equal(taken) || len(h.Artifacts) != len(content) {
		t.Errorf("header %+v", h)
	}
	for digest, b := range content {
		if !bytes.Equal(held[digest], b) {
			t.Errorf("artifact %.8s has %d bytes, want %d", digest, len(held[digest]), len(b))
		}
	}
	if len(held) != len(content) {
		t.Errorf("%d artifacts, want those of releases that can be chosen: %d", len(held), len(content))
	}
}

// Each byte that is altered, and each that is missing or too much, is noticed.
func TestDamageIsRefused(t *testing.T) {
	key, _, err := NewKey()
	must(t, err)
	small := fleet.New()
	e, err := fleet.NewEntry("p1", "system", taken, fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	})
	must(t, err)
	small.Apply(1, e)
	file := encrypted(t, key, plain(t, small.View()))
	if _, err := read(key, file); err != nil {
		t.Fatal(err)
	}
	for i := range file {
		altered := bytes.Clone(file)
		altered[i] ^= 1
		if _, err := read(key, altered); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrWrongKey) {
			t.Fatalf("byte %d of %d altered: %v", i, len(file), err)
		}
		if _, err := read(key, file[:i]); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrWrongKey) {
			t.Fatalf("first %d bytes of %d: %v", i, len(file), err)
		}
	}
	if _, err := read(key, append(bytes.Clone(file), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte after it: %v", err)
	}
}

// What somebody with the key made, and made wrong, is refused as well.
func TestContentThatDoesNotFitIsRefused(t *testing.T) {
	v := furnished(t)
	text := plain(t, v)
	for digest, b := range content {
		forged := bytes.Replace(text, b, bytes.ToUpper(b), 1)
		if _, err := Read(bytes.NewReader(forged), Contents{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), digest) {
			t.Errorf("other bytes in artifact %.8s: %v", digest, err)
		}
	}
	for name, tc := range map[string]struct {
		text []byte
		want error
	}{
		"no archive":           {[]byte(strings.Repeat("hello", 500)), ErrDamaged},
		"nothing":              {nil, ErrDamaged},
		"another format":       {bytes.Replace(text, []byte(`"moult-backup"`), []byte(`"other-backup"`), 1), ErrDamaged},
		"a newer format":       {bytes.Replace(text, []byte(`"version": 1`), []byte(`"version": 2`), 1), ErrNewer},
		"another index":        {bytes.Replace(text, fmt.Appendf(nil, `"index": %d`, v.Index()), fmt.Appendf(nil, `"index": %d`, v.Index()+1), 1), ErrDamaged},
		"an altered state":     {bytes.Replace(text, []byte("server-1\",\"role"), []byte("server-2\",\"role"), 1), ErrDamaged},
		"with something after": {append(bytes.Clone(text), 'x'), ErrDamaged},
	} {
		if bytes.Equal(tc.text, text) {
			t.Fatalf("%s is no change", name)
		}
		if _, err := Read(bytes.NewReader(tc.text), Contents{}); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorsOfThoseWhoUseItAreTheirs(t *testing.T) {
	text, full := plain(t, furnished(t)), errors.New("the disk is full")
	for name, c := range map[string]Contents{
		"header":   {Header: func(Header) error { return full }},
		"state":    {State: func(io.Reader) error { return full }},
		"artifact": {Artifact: func(Artifact, io.Reader) error { return full }},
	} {
		if _, err := Read(bytes.NewReader(text), c); !errors.Is(err, full) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	v := furnished(t)
	h := Header{Artifacts: []Artifact{{SHA256: strings.Repeat("b", 64), Size: 3}}}
	if err := Write(io.Discard, h, v, open); err == nil || !strings.Contains(err.Error(), "not held") {
		t.Errorf("an artifact that is not held: %v", err)
	}
	h.Artifacts = []Artifact{{SHA256: Wanted(v)[0].SHA256, Size: 1 << 20}}
	if err := Write(io.Discard, h, v, open); err == nil {
		t.Error("an artifact that is too short was written")
	}
	if err := Write(io.Discard, Header{}, fleet.New().View(), open); err == nil {
		t.Error("a backup of nothing was written")
	}
}

func TestKeys(t *testing.T) {
	phrase, err := Passphrase("correct horse battery")
	must(t, err)
	file := encrypted(t, phrase, []byte("content"))
	if r, err := phrase.Decrypt(bytes.NewReader(file)); err != nil {
		t.Error(err)
	} else if got, err := io.ReadAll(r); string(got) != "content" {
		t.Errorf("decrypted %q, %v", got, err)
	}
	other, err := Passphrase("correct horse buttery")
	must(t, err)
	pair, public, err := NewKey()
	must(t, err)
	for name, key := range map[string]Key{"another passphrase": other, "a key for a passphrase": pair} {
		if _, err := key.Decrypt(bytes.NewReader(file)); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "short", strings.Repeat("x", MaxPassphrase+1)} {
		if _, err := Passphrase(text); err == nil {
			t.Errorf("a passphrase of %d bytes is taken", len(text))
		}
	}
	for _, text := range []string{"", "age1", "AGE-SECRET-KEY-1", public + "\n" + public, public[:len(public)-1] + another(public[len(public)-1]), "/etc/passwd"} {
		if _, err := ParseRecipient(text); err == nil || !strings.Contains(err.Error(), "recipient") {
			t.Errorf("recipient %q: %v", text, err)
		}
		if _, err := ParseIdentity(text); err == nil {
			t.Errorf("identity %q is taken", text)
		}
	}
	to, err := ParseRecipient(public)
	must(t, err)
	if _, err := to.Decrypt(bytes.NewReader(file)); err == nil {
		t.Error("a public key opens backups")
	}
}

// another is a letter of age's keys that is not this one.
func another(letter byte) string {
	if letter == 'q' {
		return "p"
	}
	return "q"
}
